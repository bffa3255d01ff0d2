"""What `python -m pipelines.restore` is told; light, so that a command line is checked quickly."""

from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from tyro.conf import arg

from infra.config import STRICT
from pipelines.jobs.paths import absolute, absolute_if_there

STATE = ".restore"
"""Folder of an output with the state of its job."""
Method = Literal[
    "latent-pmrf", "pmrf", "posterior-mean", "source", "vae-reconstruction", "spandrel"
]
Device = Literal["cuda", "cpu"]
Solver = Literal["euler", "heun"]
Precision = Literal["float32", "tf32", "bfloat16"]
Execution = Literal["eager", "graph", "compiled"]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ModelRule:
    """A model, and how it restores."""

    model: str = ""
    """A bundle or the folder of a training run, a path or s3://; a hub id; or portraits128, which
    comes with the project: small, 128 pixels."""
    method: Method | None = None
    """None: the model's flow. posterior-mean: the predictor alone; source: where a latent flow
    begins, decoded without its noise (Eq. 4); vae-reconstruction: the picture through the
    autoencoder, as a bound on what a latent flow can show; spandrel: --model is a file of another
    restorer, such as GFPGAN, with the extra `comparators`."""
    steps: PositiveInt | None = None
    """Of the solver; None: as the model says, 25 in the paper."""
    solver: Solver | None = None
    """Heun's method evaluates the network twice in a step; None: as the model says."""
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How far the flow may go from the posterior mean, 0, to what it was trained for, 1."""
    sigma_s: NonNegativeFloat | None = None
    """Standard deviation of the source's noise; None: as the model says."""
    seed: int = 0
    """Of the noise, which is a function of (seed, key)."""
    precision: Precision = "float32"
    """Of the networks: float32, in which an encoder and a predictor that the training used in less
    stay as they were; tf32: in products on NVIDIA GPUs; bfloat16: autocast, of weights that are
    cast once."""
    execution: Execution | None = None
    """How networks run on a GPU. eager: kernel by kernel; graph: the flow is recorded once
    and replayed; compiled: that too, and blocks of all networks by torch.compile, which takes
    minutes at first. None: graph; compiled from 5,000 pictures of aligned faces a GPU on. On a CPU
    all is eager."""

    def __post_init__(self) -> None:
        if self.method == "spandrel" and self._of_a_flow():
            raise ValueError(
                f"method 'spandrel' has no {', '.join(self._of_a_flow())}: a restorer of others is "
                "no flow; leave these out"
            )

    def _of_a_flow(self) -> list[str]:
        """Name the settings that only a flow has and that are given."""
        given = {name: getattr(self, name) for name in ("steps", "solver", "sigma_s")}
        named = [name for name, value in given.items() if value is not None]
        return named + (["strength"] if self.strength != 1 else [])


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class RestoreRule(ModelRule):
    """What a restored face is a function of, beside the picture and its key."""

    samples: PositiveInt = 1
    """Restorations of each face, K; from two on with a map of their spread."""
    device: Device | None = None
    """None: a GPU where the Ray cluster has one, which the first line says."""
    batch: PositiveInt | None = None
    """Faces in a pass of the networks on a GPU, by default 8; on a CPU a pass is one face."""
    threads: PositiveInt = 1
    """Of a worker on CPUs; a picture's last bits can depend on it."""

    def __post_init__(self) -> None:
        ModelRule.__post_init__(self)  # a class with slots has no super() of its own
        refuse_tf32(self.precision, self.device)
        refuse_execution(self.execution, self.device)


def refuse_tf32(precision: Precision, device: Device | None) -> None:
    """Refuse a precision that a device has not.

    Raises:
        ValueError: says what to take.
    """
    if precision == "tf32" and device == "cpu":
        raise ValueError("precision 'tf32': a format of NVIDIA GPUs; on a CPU take float32")


def refuse_execution(execution: Execution | None, device: Device | None) -> None:
    """Refuse a way of running networks that a device has not.

    Raises:
        ValueError: says what to take.
    """
    if execution not in (None, "eager") and device == "cpu":
        raise ValueError(f"execution {execution!r}: of NVIDIA GPUs; on a CPU leave it out")


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class WholeRule:
    """How faces are found in photographs and put back."""

    whole: bool = False
    """The inputs are whole photographs: find their faces, align, restore, paste back."""
    faces: str = "all"
    """Which faces: largest, all, or numbers from left to right, such as 1,3."""
    faces_json: str = ""
    """File with the faces of the photographs, in the place of finding them."""
    min_face: PositiveInt | None = None
    """Side in pixels of a face's square, below which it is left alone; None: an eighth of the
    model's side."""
    colour: Literal["off", "mean", "low-pass"] = "off"
    """Give a restored face the colours of the input: its mean, or all that is smooth."""
    layers: bool = False
    """Write each restored face as a picture with transparency too, for an editor."""

    def smallest(self, size: int) -> int:
        """Return the side in pixels of the smallest face that a model of ``size`` may enlarge."""
        return self.min_face or max(1, size // 8)


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class RestoreConfig:
    """What to restore, with what, into what."""

    input: Annotated[tuple[str, ...], arg(aliases=["-i"])] = ()
    """Folders, images, .tar, .tar.gz, .tar.zst, .tar.xz, .zip, or s3://; NAME= prefixes keys."""
    output: Annotated[str, arg(aliases=["-o"])] = ""
    """Folder of the restored pictures; made if it is not there."""
    reference: str = ""
    """HQ of the pictures, named as they are: any --input; the page shows them too."""
    keep_posterior_mean: bool = False
    """Write KEY.posterior-mean.png too: what is certain, as the flow began with it."""
    rule: RestoreRule = field(default_factory=RestoreRule)
    """From a face to a restored one."""
    whole: WholeRule = field(default_factory=WholeRule)
    """From a photograph to its faces and back."""
    gpus: PositiveInt | None = None
    """GPUs, one worker each; by default all of the Ray cluster."""
    workers: PositiveInt | None = None
    """Workers on CPUs; by default as many as the Ray cluster has CPUs for."""
    overwrite: bool = False
    """Replace what another configuration made in the output folder."""
    dry_run: bool = False
    """Restore one picture, say how long all of them take, and write nothing."""

    def __post_init__(self) -> None:
        if self.keep_posterior_mean and self.whole.whole:
            raise ValueError(
                "keep_posterior_mean with whole: of aligned faces only; in a photograph restore "
                "with --method posterior-mean instead, into another folder"
            )

    def absolute(self) -> "RestoreConfig":
        """Return the same job with every path absolute, for processes that work elsewhere."""
        return replace(
            self,
            output=absolute(self.output),
            reference=absolute_if_there(self.reference),
            rule=replace(self.rule, model=absolute_if_there(self.rule.model)),
            whole=replace(self.whole, faces_json=absolute(self.whole.faces_json)),
        )


EXAMPLE = "data/astronaut"
"""Folder of the face that the command restores without arguments, and of what it becomes."""
PRESETS = {
    "default": RestoreConfig(),
    "demo": RestoreConfig(
        input=(f"{EXAMPLE}/lq",),
        output=f"{EXAMPLE}/restored",
        reference=f"{EXAMPLE}/hq",
        keep_posterior_mean=True,
        rule=RestoreRule(model="portraits128"),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ExportConfig:
    """How `python -m pipelines.restore export RUN BUNDLE` makes a bundle."""

    checkpoint: str = "last"
    """Whose averaged weights: of the last step, of the best by the run's metric, or a step."""
    dtype: Literal["float32", "float16"] = "float32"
    """In which the weights are stored; float16 is half as large, and is computed in float32."""
    alignment: Literal["ffhq", "any"] | None = None
    """How the training images frame a face; None: as the run says."""
    steps: PositiveInt | None = None
    """Of the solver, with which the bundle restores where no others are named; None: as it was."""
    solver: Solver | None = None
    """Likewise."""
    sigma_s: NonNegativeFloat | None = None
    """Standard deviation of the source's noise, likewise; None: as the model was trained."""
    about: str = ""
    """File in Markdown that becomes a part of the card: on whom it was trained, what it is for."""
    licence: str = ""
    """Under which the parts may be used whose licence is not known, which are your own."""
    vae: str = ""
    """The run's autoencoder, if it was not given to the run or lies elsewhere now."""
    predictor: str = ""
    """Its posterior-mean predictor, likewise."""
    regressor: str = ""
    """Its regressor, likewise."""

"""What stands in bundle.json: the way an image takes, the digests of the parts, the training.

The digest of a bundle is taken of everything in bundle.json that a restored image depends on. It
stands there too, so that a changed file is noticed; bundles of one digest restore alike.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import Any, Final, Literal, get_args

from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from models.checkpoint import CheckpointError
from models.configuration import STRICT, config_from_dict
from models.predictor.swinir import CHECKPOINT
from models.predictor.swinir import LICENCE as PREDICTOR_LICENCE
from models.restorer import RestorationRule, Solver
from models.vae.public import PUBLIC_VAES

BUNDLE = "bundle.json"
FORMAT: Final = "latent-pmrf bundle 1"
PartName = Literal["velocity", "vae", "predictor", "regressor"]
PARTS: tuple[PartName, ...] = get_args(PartName)
Alignment = Literal["ffhq", "any"]
Dtype = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class TrainingFacts:
    """Where a bundle's networks are from, for people; no restored image depends on it."""

    step: NonNegativeInt | None = None
    """Updates of the velocity network; None where its publisher does not say."""
    max_steps: PositiveInt | None = None
    """Updates that the training was to take."""
    batch: PositiveInt | None = None
    """Samples of an update."""
    flops: NonNegativeInt | None = None
    """Counted floating-point operations of the updates, forward and backward."""
    data: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each set that it was trained on, by name."""
    degradation: dict[str, Any] = field(default_factory=dict)
    """What made LQ of HQ: the fields of `datasets.degradation.parameters.DegradationConfig`; empty
    where that is not known."""
    validation: dict[str, float] = field(default_factory=dict)
    """Numbers of the validation of this step, by name of the metric."""
    held_out: NonNegativeInt | None = None
    """Pictures that they are means over."""
    networks: dict[PartName, str] = field(default_factory=dict)
    """Where each part was taken from, by name of the part."""
    licences: dict[str, str] = field(default_factory=dict)
    """Under which each part may be used, as far as that is known, by name of the part."""
    origin: dict[str, dict[str, str | int]] = field(default_factory=dict)
    """Which run or weights the training began from."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the programs that trained."""
    about: str = ""
    """What whoever hands it on has to say, in Markdown, such as who is in the data."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class BundleConfig:
    """What stands in bundle.json, besides its digest."""

    format: Literal["latent-pmrf bundle 1"] = FORMAT
    rule: RestorationRule
    """Which way an image takes."""
    size: PositiveInt
    """Side of the images that it was trained on, in pixels."""
    alignment: Alignment = "ffhq"
    """How these show a face: framed as FFHQ's are, or in any way."""
    steps: PositiveInt = 25
    """Of the solver, where the user names no other number."""
    solver: Solver = "euler"
    dtype: Dtype = "float32"
    """In which the weights are stored; they are computed with in float32."""
    parts: dict[PartName, str] = field(default_factory=dict)
    """Digest of each part that is there: of its configuration and its weights."""
    training: TrainingFacts = field(default_factory=TrainingFacts)

    @property
    def method(self) -> Literal["latent-pmrf", "pmrf"]:
        """The name of the flow's method: PMRF is the one in pixels."""
        return "latent-pmrf" if self.rule.space == "latent" else "pmrf"

    @property
    def digest(self) -> str:
        """SHA-256 in hex of everything that a restored image depends on."""
        facts = {name: value for name, value in self._values().items() if name != "training"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Write bundle.json."""
        return json.dumps({**self._values(), "digest": self.digest}, indent=1) + "\n"

    def _values(self) -> dict[str, Any]:
        """Return all fields; bundles from before the predictor's precision was one say nothing."""
        values = asdict(self)
        if self.rule.predictor_precision == "float32":
            del values["rule"]["predictor_precision"]
        return values


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class FlowFacts:
    """What every checkpoint of a flow says about restoring with it."""

    rule: RestorationRule
    """Which way an image takes."""
    side: PositiveInt
    """Of a point of the flow, in latent cells or pixels."""
    alignment: Alignment
    """How the training images frame a face."""
    steps: PositiveInt
    """Of the solver in validation."""
    best: str
    """Metric of the best checkpoint; prefixed by "-", less is better."""
    networks: dict[PartName, str]
    """Where each network around the flow was given from; of those that were given."""
    weights: dict[PartName, str]
    """Their `models.frozen.Identity.weights`, and those of the networks that made the latents."""
    flops_per_step: NonNegativeInt
    """Counted, forward and backward, of all ranks together."""
    training: TrainingFacts
    """Of all steps; what depends on the step is open."""

    def bundle(
        self,
        factor: int,
        *,
        step: int,
        metrics: Mapping[str, float],
        origin: Mapping[str, Mapping[str, Any] | None],
    ) -> BundleConfig:
        """Return the configuration of a bundle, without digests.

        Args:
            factor: pixels for each cell of a point along a side: an autoencoder's, else 1.
            step: updates that the velocity network has taken.
            metrics: of the validation of this step; empty if there was none.
            origin: where the run began, as its checkpoints have it.
        """
        judged = {name: value for name, value in metrics.items() if math.isfinite(value)}
        of_pictures = {name: value for name, value in judged.items() if not name.startswith("loss")}
        training = replace(
            self.training,
            step=step,
            flops=step * self.flops_per_step,
            validation=of_pictures or judged,
            networks={name: _short(where) for name, where in self.networks.items()},
            licences=known_licences(self.networks),
            origin={
                name: {key: _short(value) for key, value in fact.items() if value is not None}
                for name, fact in origin.items()
                if fact
            },
        )
        return BundleConfig(
            rule=self.rule,
            size=self.side * factor,
            alignment=self.alignment,
            steps=self.steps,
            training=training,
        )


def _short(fact: Any) -> Any:
    """Name a local file by the end of its path: the rest is of one machine, and of one person."""
    if not isinstance(fact, str):
        return fact
    name, equals, path = fact.rpartition("=")
    return f"{name}{equals}{'/'.join(path.split('/')[-2:])}" if path.startswith("/") else fact


def known_licences(networks: Mapping[PartName, str]) -> dict[str, str]:
    """Return the licences of published weights, by where they were given from."""
    known = {name: source.licence for name, source in PUBLIC_VAES.items()}
    known[CHECKPOINT] = PREDICTOR_LICENCE
    told = {}
    for part, where in networks.items():
        names = (where.partition("=")[0], where.rpartition("/")[2])
        told[str(part)] = next((known[name] for name in names if name in known), "")
    return {part: licence for part, licence in told.items() if licence}


def needed(rule: RestorationRule) -> tuple[PartName, ...]:
    """Name the parts without which no image can take this way."""
    takes_mean = rule.source in ("posterior_mean", "regressed") or (
        rule.conditional and rule.source != "lq"
    )
    wanted: dict[PartName, bool] = {
        "velocity": True,
        "vae": rule.space == "latent",
        "predictor": takes_mean,
        "regressor": rule.source == "regressed",
    }
    return tuple(name for name in PARTS if wanted[name])


def read_bundle(text: bytes, source: str) -> BundleConfig:
    """Read bundle.json.

    Raises:
        CheckpointError: it is none, was changed, or is of another format; ``source`` names it.
    """
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"{source}: of the format {values['format']!r}, this program reads {FORMAT!r}; "
                "update the program, or export the bundle again with this one"
            )
        noted = values.pop("digest")
        config = config_from_dict(BundleConfig, values)
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: not what this program writes ({error}); copy the whole bundle again"
        ) from error
    if config.digest != noted:
        raise CheckpointError(
            f"{source}: was changed since it was written: its content has the digest "
            f"{config.digest[:12]}, and it notes {str(noted)[:12]}; copy the whole bundle "
            "again, or export it again with other settings"
        )
    return config

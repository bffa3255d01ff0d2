"""What `python -m pipelines.evaluate vae` is told; light, as every configuration."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from tyro.conf import Positional, arg

from datasets.names import NAME_RULE, is_valid_prefix
from infra.config import STRICT
from pipelines.evaluate.config import MeasureConfig
from pipelines.jobs.paths import absolute, absolute_if_there
from pipelines.restore.config import refuse_tf32

STATE, ORIGINALS, RECONSTRUCTED, EVALUATION = ".vae", "originals", "reconstructed", "evaluation"
"""Folders of an output, as `pipelines.evaluate.vae.job` describes them."""
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
"""Float16 beside those of `pipelines.restore`: of the authors' numbers."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class VAEsConfig:
    """Which autoencoders reconstruct which pictures, into what."""

    vae: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME=DIR [NAME=DIR ...]")] = ()
    """Autoencoders: folders, training runs, bundles, s3://, or public names such as sd15-f8c4."""
    input: Annotated[str, arg(aliases=["-i"])] = ""
    """Folder or archive of HQ pictures, or an image set of pipelines.curate; s3:// too."""
    output: Annotated[str, arg(aliases=["-o"])] = ""
    """Folder of the pictures, the table and the page; made if it is not there."""
    split: Literal["val", "train", "all"] = "val"
    """Of an image set: the pictures that training holds out, the others, or all."""
    first: PositiveInt | None = None
    """Take only the first so many pictures, by key."""
    precision: Precision = "float32"
    """Of the autoencoders: float32; tf32: in products on NVIDIA GPUs; else autocast."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    """The metrics, and what computes."""

    def __post_init__(self) -> None:
        if self.precision != "float16":
            refuse_tf32(self.precision, self.measure.device)
        for text in self.vae:
            name, _, where = text.partition("=")
            if not name or not where:
                raise ValueError(f"vae {text!r}: give NAME=DIR, such as ours=runs/vae")
            if "/" in name or not is_valid_prefix(name):
                raise ValueError(f"vae {text!r}: {NAME_RULE}, and none inside")
        names = [text.partition("=")[0] for text in self.vae]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"vae: the name {twice[0]} comes twice; give each its own")

    @property
    def folders(self) -> Mapping[str, str]:
        """Return where each autoencoder is, by its name."""
        return {name: where for name, _, where in (text.partition("=") for text in self.vae)}

    def absolute(self) -> "VAEsConfig":
        """Return the same job with every path absolute, for processes that work elsewhere."""
        found = {name: absolute_if_there(where) for name, where in self.folders.items()}
        return replace(
            self,
            vae=tuple(f"{name}={where}" for name, where in found.items()),
            input=absolute_if_there(self.input),
            output=absolute(self.output),
            measure=self.measure.absolute(),
        )


PRESETS = {"default": VAEsConfig()}

"""What stands in bundle.json: the way an image takes, the digests of the parts, the training.

The digest of a bundle is taken of everything in bundle.json that a restored image depends on. It
stands there too, so that a changed file is noticed; bundles of one digest restore alike.
"""

import hashlib
import json
from dataclasses import asdict, field
from typing import Any, Final, Literal, get_args

from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from models.checkpoint import CheckpointError
from models.configuration import STRICT, config_from_dict
from models.restorer import RestorationRule, Solver

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
    validation: dict[str, float] = field(default_factory=dict)
    """Numbers of the validation of this step, by name of the metric."""
    held_out: NonNegativeInt | None = None
    """Pictures that they are means over."""
    networks: dict[str, str] = field(default_factory=dict)
    """Where each part was taken from, by name of the part."""
    licences: dict[str, str] = field(default_factory=dict)
    """Under which each part may be used, as far as that is known, by name of the part."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Which run or weights the training began from."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the programs that trained."""


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
        facts = {name: value for name, value in asdict(self).items() if name != "training"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Write bundle.json."""
        return json.dumps({**asdict(self), "digest": self.digest}, indent=1) + "\n"


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

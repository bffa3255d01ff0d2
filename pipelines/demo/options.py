"""What the page asks of one restoration: the query of its request."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from starlette.datastructures import QueryParams

from datasets.names import sample_key
from infra.config import refusal
from infra.errors import UsageError

CONTROLS = ("steps", "strength", "seed", "samples")
"""Fields of a `RestoreRule` that the page has a control for."""


@dataclass(
    frozen=True, kw_only=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False)
)
class Options:
    """How one photograph is restored: the command's options, or what the page was started with."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "photograph.png"
    """Of the file. The noise is a function of the seed and of the key that this name gives."""
    steps: Annotated[int, Field(ge=1, le=100)] | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None  # exact in JavaScript
    samples: Annotated[int, Field(ge=1, le=8)] | None = None
    whole: bool = False
    faces: Literal["largest", "all"] = "largest"
    colour: Literal["off", "mean", "low-pass"] = "off"

    @property
    def key(self) -> str:
        """The photograph's name without its extension, as the command has it."""
        return sample_key(PurePosixPath(PurePosixPath(self.name).name))

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of the rule that this photograph has its own values for."""
        given = {name: getattr(self, name) for name in CONTROLS}
        return {name: value for name, value in given.items() if value is not None}


def options_of(query: QueryParams) -> Options:
    """Read the options of a request.

    Raises:
        UsageError: an unknown option, one that is given twice, or a value that is not allowed.
    """
    given = query.multi_items()
    if doubled := {name for name, _ in given if len(query.getlist(name)) > 1}:
        raise UsageError(f"{', '.join(sorted(doubled))}: given twice; give each option once")
    try:
        return TypeAdapter(Options).validate_strings(dict(given))
    except ValidationError as error:
        raise refusal(error, Options) from error

"""How configurations of networks and of training's parts are checked, and read from JSON."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Of their pydantic dataclasses: nothing is converted, unknown keys and NaN are errors."""


def config_from_dict(cls: type[T], values: Mapping[str, Any], *, ignore_unknown: bool = False) -> T:
    """Build a configuration dataclass from JSON values; lists become tuples, at any depth.

    Args:
        cls: the dataclass.
        values: its fields.
        ignore_unknown: drop keys that are no fields, for configurations of other projects.

    Raises:
        ValueError: an unknown key, a value of another type, or what the class refuses.
    """
    text = json.dumps(values)  # pydantic takes a list for a tuple in JSON, and nowhere else
    try:
        return TypeAdapter(cls).validate_json(
            text, strict=True, extra="ignore" if ignore_unknown else "forbid"
        )
    except ValidationError as error:
        raise ValueError(f"{cls.__name__}: {'; '.join(_sentences(error))}") from error


def _sentences(error: ValidationError) -> list[str]:
    """Say of each fault which field, which value, and what is allowed."""
    sentences = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(step) for step in fault["loc"])
        said = fault["msg"].removeprefix("Value error, ")
        sentences.append(f"{field} {fault['input']!r}: {said}" if field else said)
    return sentences

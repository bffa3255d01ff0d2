"""Configurations as data: pydantic dataclasses to and from JSON, digests, differences."""

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from infra.errors import UsageError
from infra.folders.bucket_path import BucketPath
from infra.folders.contract import Missing
from infra.storage import explained

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""How configurations are checked: nothing is converted, unknown keys and NaN are errors."""


def canonical_json(value: object) -> bytes:
    """Encode JSON in the one form that digests are taken of: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def pretty_json(value: object) -> bytes:
    """Encode JSON for people: indented, keys in the order given, a newline at the end."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_object(path: Path | BucketPath, name: str) -> dict[str, Any]:
    """Read a JSON object that a user wrote.

    Args:
        path: the file.
        name: what the user called it, for the messages.

    Raises:
        UsageError: no such file, no JSON, or no object.
    """
    try:
        values = json.loads(path.read_bytes())
    except Missing as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(str(explained(error, str(path)))) from error
    except ValueError as error:
        raise UsageError(f"{name}: not a JSON file ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name}: holds a {type(values).__name__}, expected an object")
    return values


def digest(value: object) -> str:
    """Hash any JSON value by content; returns SHA-256 in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration dataclass into plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(cls: type[T], values: Mapping[str, Any], name: str = "") -> T:
    """Build a configuration dataclass from JSON values, which pydantic checks strictly.

    Args:
        cls: the class; lists become its tuples, objects its nested configurations.
        values: its fields.
        name: what the user calls them, for the messages; by default the name of the class.

    Raises:
        UsageError: an unknown key, with the valid ones; a value of another type; or what the class
            itself refuses.
    """
    text = json.dumps(values)  # pydantic takes a list for a tuple in JSON, and nowhere else
    adapter: TypeAdapter[T] = _adapter(cast(Any, cls))  # a type is hashable, which mypy denies
    try:
        return adapter.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise refusal(error, cls, name or cls.__name__) from error


@cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    """Build what checks a class, which takes longer than to check."""
    return TypeAdapter(cls)


def refusal(error: ValidationError, cls: type[Any], name: str = "") -> UsageError:
    """Put into sentences what pydantic refuses: which field, which value, and what is allowed.

    Args:
        error: of a configuration, or of a part of one.
        cls: the class of the whole configuration.
        name: what the user calls it; by default nothing.
    """
    part = [field for field, part in _parts(cls).items() if part.__name__ == error.title]
    sentences, unknown = [], dict[str, list[str]]()
    for fault in error.errors(include_url=False):
        path = [*part, *(str(step) for step in fault["loc"])]
        if fault["type"] == "unexpected_keyword_argument":
            unknown.setdefault(_valid_place(path, cls), []).append(".".join(path))
        else:
            sentences.append(_sentence(".".join(path), fault))
    sentences += [f"unknown keys: {', '.join(keys)}; {place}" for place, keys in unknown.items()]
    said = "; ".join(sentences)
    return UsageError(f"{name}: {said}" if name else said)


def _sentence(field: str, fault: ErrorDetails) -> str:
    match fault["type"]:
        case "missing":
            return f"{field} is missing"
        case "value_error":  # raised by the class itself, whose message names fields and values
            said = str(fault["ctx"]["error"])
            return f"{field}: {said}" if field else said
    return f"{field} {fault['input']!r}: {fault['msg'].removeprefix('Input ')}"


def _valid_place(path: Sequence[str], cls: type[Any]) -> str:
    """Say which part of a configuration knows an unknown key, or which keys there are."""
    *parents, key = path
    for parent in parents:  # among them the numbers and names of what a list or a mapping holds
        cls = _parts(cls).get(parent, cls)
    for name, part in _parts(cls).items():
        if key in _names(part):
            return f'they belong inside "{name}": {{...}}'
    return f"valid: {', '.join(_names(cls))}"


def _parts(cls: type[Any]) -> dict[str, type[Any]]:
    """Return the nested configurations of a class by their field's name."""
    return {
        name: option
        for name, hint in typing.get_type_hints(cls).items()
        for option in (hint, *typing.get_args(hint))
        if isinstance(option, type) and dataclasses.is_dataclass(option)
    }


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay JSON values over others; of an object that both have, only the fields given change."""
    both = {
        name: merged(base[name], value)
        for name, value in over.items()
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
    }
    return {**base, **over, **both}


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested fields dotted names, so that a difference is named as deep as it lies."""
    named: dict[str, Any] = {}
    for name, value in fields.items():
        nested = isinstance(value, Mapping)
        named |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return named


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """List the fields in which two configurations differ, each as ``name: theirs -> mine``.

    Of a SHA-256 the first 12 of its 64 digits are said, which tell any two apart that will ever
    meet; the files that hold it have all of them.
    """
    names = sorted(mine.keys() | theirs.keys())
    return [
        f"{name}: {_said(theirs.get(name))} -> {_said(mine.get(name))}"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]


def _said(value: object) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", repr(value))

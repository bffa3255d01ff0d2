"""Configurations as data: frozen dataclasses to and from JSON, their digests, their differences."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import UsageError
from infra.storage import explained

T = TypeVar("T")


def canonical_json(value: object) -> bytes:
    """Encode JSON in the one form that digests are taken of: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def pretty_json(value: object) -> bytes:
    """Encode JSON for people: indented, keys in the order given, a newline at the end."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_object(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object that a user wrote.

    Args:
        path: the file.
        name: what the user called it, for the messages.

    Raises:
        UsageError: no such file, no JSON, or no object.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(str(explained(error, path))) from error
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


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a configuration dataclass from JSON values; lists become tuples, at any depth.

    Raises:
        UsageError: an unknown key, with the valid ones; or what the class itself refuses.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise UsageError(f"unknown {cls.__name__} keys {unknown}; valid: {sorted(hints)}")
    try:
        return cls(**{name: _convert(hints[name], value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{cls.__name__}: {error}") from error


def _convert(hint: Any, value: Any) -> Any:
    """Undo what JSON does to tuples and nested dataclasses."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if (
            isinstance(option, type)
            and dataclasses.is_dataclass(option)
            and isinstance(value, Mapping)
        ):
            return from_dict(option, value)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return tuple(value)
    return value


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested fields dotted names, so that a difference is named as deep as it lies."""
    named: dict[str, Any] = {}
    for name, value in fields.items():
        nested = isinstance(value, Mapping)
        named |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return named


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """List the fields in which two configurations differ, each as ``name: theirs -> mine``."""
    names = sorted(mine.keys() | theirs.keys())
    return [
        f"{name}: {theirs.get(name)!r} -> {mine.get(name)!r}"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]

"""Damage to files and to JSON documents, for the tests of verification and of repair."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Place = tuple[str | int, ...]


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Lose the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def values(tree: Any, path: Place = ()) -> Iterator[Place]:
    """Yield the place of every value of a JSON document that is no object and no list."""
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, value in items:
            yield from values(value, (*path, name))
    else:
        yield path


def changed(value: Any) -> Any:
    """Return another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
    return 1


def damages(content: bytes) -> Iterator[bytes]:
    """Yield a file with one of its bits flipped, at places all over it, and cut at others."""
    rng = np.random.default_rng(2026)
    for place in rng.integers(0, len(content), 24).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
    for length in [0, 1, *rng.integers(0, len(content), 6).tolist()]:
        yield content[:length]

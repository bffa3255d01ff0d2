"""Whether a secret stands in a file: as it is, or as URLs, JSON and base64 write it."""

import base64
import json
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path

CHUNK = 1 << 20


def leaks(secret: str, folders: Iterable[Path]) -> list[Path]:
    """List the files below some folders, or the files, in which the secret stands."""
    forms = _forms(secret)
    return [path for folder in folders for path in _files(folder) if _holds(path, forms)]


def is_in(secret: str, text: str) -> bool:
    """Tell whether the secret stands in a text."""
    return any(form in text.encode() for form in _forms(secret))


def _forms(secret: str) -> set[bytes]:
    """Return the ways in which the secret may be written; of base64, those of its three offsets."""
    plain = secret.encode()
    inner = [base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 : -4] for shift in range(3)]
    quoted = {urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
    return {plain, *inner, *(form.encode() for form in quoted), json.dumps(secret)[1:-1].encode()}


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (found for found in sorted(path.rglob("*")) if _is_plain(found))


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _holds(path: Path, forms: set[bytes]) -> bool:
    """Search a file, a piece at a time with the end of the piece before."""
    longest, before = max(map(len, forms)), b""
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            if any(form in before + piece for form in forms):
                return True
            before = piece[-longest:]
    return False

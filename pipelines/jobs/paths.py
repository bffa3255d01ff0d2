"""Paths that a user gave, made absolute once, in the process that the user started.

Workers run elsewhere: on a Ray cluster their working directory is another folder, or another
machine's.
"""

from pathlib import Path

from infra.folders.opening import is_uri
from infra.paths import path_of


def absolute(path: str) -> str:
    """Return a path of a file or folder, existing or not, as an absolute one; "" stays."""
    return str(path_of(path).absolute()) if path else ""


def absolute_if_there(text: str) -> str:
    """Return the absolute path of what exists here; anything else, such as a hub id, as it is."""
    named, equals, path = text.partition("=")
    if is_uri(text) or is_uri(path):
        return text
    if text and (there := Path(text).expanduser()).exists():
        return str(there.absolute())
    if equals and path and Path(path).expanduser().exists():
        return f"{named}={Path(path).expanduser().absolute()}"
    return text

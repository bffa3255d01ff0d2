"""Weights that a user names, wherever they are: on this machine before they are loaded."""

from pathlib import Path

from infra.paths import local_copy, path_of
from models.checkpoint import CONFIG, WEIGHTS


def at_hand(where: str) -> str:
    """Return what to load in the place of what a user named.

    Args:
        where: a path or URI of a folder or file; a name of the Hugging Face hub or of a public
            network, which stays as it is, as does NAME= before a folder.

    Raises:
        UserError: there is nothing in the bucket, or it cannot be read.
    """
    name, equals, folder = where.rpartition("=") if "=s3://" in where else ("", "", where)
    return f"{name}{equals}{_copied(folder)}"


def _copied(where: str) -> Path:
    path = path_of(where)
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():  # they belong together
        return local_copy(path.parent) / WEIGHTS
    return local_copy(path)

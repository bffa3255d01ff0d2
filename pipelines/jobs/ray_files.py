"""What Ray keeps on a machine besides the job's own files, and which variables move it."""

import os
import secrets

from infra.errors import UserError


def take_own_token() -> None:
    """Give the Ray that this process starts a token of its own.

    Ray would keep one in ~/.ray otherwise, and fail where there is no home directory or it cannot
    be written, as in many containers.
    """
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def unwritable(error: OSError) -> UserError:
    """Say that it is Ray that wants to write where the user never told it to."""
    return UserError(
        f"Ray, which starts the workers, cannot write {error.filename or 'its files'} "
        f"({error.strerror or error}): it keeps its sessions in /tmp/ray, or in the folder that "
        "RAY_TMPDIR names (a short path, since those of sockets have 107 bytes at most); set "
        "RAY_TMPDIR to a folder on a local disk that you may write"
    )

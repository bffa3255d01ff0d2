"""Where a model is found: the bundle that a user named."""

from pathlib import Path

from infra.copies import at_hand
from infra.errors import UsageError
from infra.folders.opening import is_uri
from infra.paths import path_of
from models.bundle import Bundle, load_bundle
from models.checkpoint import CheckpointError


def open_bundle(where: str) -> Bundle:
    """Load the bundle that --model names, in float32 on the CPU.

    Raises:
        UsageError: it is not there, or damaged.
    """
    try:
        if is_uri(where):
            folder = path_of(where)
            return load_bundle(at_hand(where), lambda part: at_hand(str(folder / part)))
        return load_bundle(Path(where).expanduser())
    except (CheckpointError, OSError) as error:
        raise UsageError(f"--model {where}: {error}") from error

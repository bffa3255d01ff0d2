"""Where a model is found: a bundle, a run, the project's own, the hub, or PMRF as published."""

import re
import sys
from pathlib import Path

from infra.copies import at_hand, local_copy
from infra.errors import UsageError
from infra.paths import AnyPath, path_of, read_if_there
from models.bundle import Bundle, load_bundle
from models.bundle_facts import BUNDLE as FILE
from models.bundle_facts import read_bundle
from models.checkpoint import CONFIG, WEIGHTS, CheckpointError, hub_remedy
from models.pmrf import REPOSITORY, WHERE, is_published, load_published
from pipelines.restore import runs

INCLUDED = {"portraits128": Path(__file__).parents[2] / "models" / "bundles" / "portraits128"}
"""Bundles that come with the project, by name; a folder of that name goes before."""
ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
FILES = [FILE, CONFIG, WEIGHTS, *(f"*/{name}" for name in (CONFIG, "*.safetensors"))]
KINDS = (
    "give a bundle, the folder of a training run or one of its checkpoints, an id "
    f"ORGANISATION/NAME of the Hugging Face hub, or {', '.join(INCLUDED)}"
)


def resolved(where: str) -> str:
    """Return what `open_bundle` will load for the same bundle later, however a run goes on.

    Of a run that is its bundle, if the run has ended with one; else its newest checkpoint, which is
    said aloud.

    Raises:
        UsageError: a run without a checkpoint.
    """
    run = path_of(where)
    if not (run / runs.CHECKPOINTS).is_dir() or (run / FILE).is_file():
        bundle = run / runs.BUNDLE
        return str(bundle) if (bundle / FILE).is_file() else where
    newest = runs.chosen(run)
    if _is_bundle_of(run / runs.BUNDLE, newest.step):
        return str(run / runs.BUNDLE)
    sys.stdout.write(f"--model {where}: the run is at {newest.said}, and restores as it is then\n")
    return str(newest.folder)


def open_bundle(where: str) -> Bundle:
    """Load the bundle that --model names, in float32 on the CPU.

    Args:
        where: as `KINDS` says; local paths, or in a bucket.

    Raises:
        UsageError: it is not there, or damaged.
    """
    where = resolved(where)
    path = path_of(where)
    try:
        if (path / runs.RECORD).is_file():
            return runs.loaded(runs.read(path))
        if not isinstance(path, Path):
            folder = local_copy(path / FILE).parent
            return load_bundle(folder, lambda part: at_hand(str(path / part)))
        if not path.exists() and where in INCLUDED:
            path = INCLUDED[where]
        elif not path.exists() and ON_THE_HUB.fullmatch(where):
            path = _downloaded(where)
        if is_published(path):
            return load_published(path)
        return load_bundle(path)
    except FileNotFoundError as error:
        raise UsageError(f"--model {where}: {error}; {KINDS}") from error
    except (CheckpointError, OSError) as error:
        raise UsageError(f"--model {where}: {error}") from error


def _is_bundle_of(folder: AnyPath, step: int) -> bool:
    """Tell whether a folder has the bundle of a step; a damaged one is none."""
    text = read_if_there(folder / FILE)
    try:
        return text is not None and read_bundle(text, str(folder)).training.step == step
    except CheckpointError:
        return False


def _downloaded(name: str) -> Path:
    """Return the folder of a repository on the Hugging Face hub, kept in its cache.

    Raises:
        UsageError: no such repository, none that may be read, or no way to the hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise UsageError(
            f"--model {name}: neither a folder here nor had from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}{hub_remedy(error)}). "
            f"Check the name, and log in if the repository is gated; or "
            f"{WHERE if name == REPOSITORY else KINDS}"
        ) from error

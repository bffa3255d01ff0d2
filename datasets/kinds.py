"""What lies at a path, in words: for the sentence that a wrong path is answered with."""

import json
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import PurePosixPath

from datasets.names import IMAGE_EXTENSIONS
from datasets.shards import MANIFEST
from infra.ahead import map_ahead
from infra.paths import AnyPath, first_below

LOOKED_AT = 1000  # entries of a folder; enough to say what it is, even where it holds millions
LOOKED_INTO = 64  # folders in it
THREADS = 16  # of them at a time: in a bucket each is a request
UNFINISHED = {".curate": "curate", ".encode": "encode"}  # a job's own folder in that of its set
KINDS = {"latent-pmrf/samples": "an image set", "latent-pmrf/latents": "a latent set"}


def described(path: AnyPath) -> str:
    """Say what lies at a path, as the rest of a sentence that begins with the path.

    Nothing but names is read, and the manifest where there is one.
    """
    return next(_findings(path))


def _findings(path: AnyPath) -> Iterator[str]:
    """Yield what can be said of a path, the most telling first."""
    if not path.exists():
        yield "there is no such folder"
    if not path.is_dir():
        yield "this is a file, not a folder"
    files, folders = first_below(path, LOOKED_AT)
    names = sorted(files + folders)
    if MANIFEST in names:
        yield _by_manifest(path / MANIFEST)
    for state, command in UNFINISHED.items():
        if state in names:
            yield (
                f"python -m pipelines.{command} has begun a set here and not finished it: run that "
                "command again"
            )
    if "config.json" in names and {"checkpoints", "log.jsonl"} & set(names):
        yield "this is the folder of a training run"
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        yield "this is the folder of a network's weights"
    if not names:
        yield "this is an empty folder"
    sets = list(_sets(path, folders[:LOOKED_INTO]))
    if sets:
        yield f"this folder holds the sets {_listed(sets)}: give one of them"
    if any(name.endswith(".tar") for name in names):
        yield f"this folder holds tar files and no {MANIFEST}: no set, or an incomplete copy of one"
    photographs = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS]
    if photographs:
        yield f"this is a folder of image files ({_listed(photographs)})"
    yield f"this folder holds {_listed(names)}"


def _sets(path: AnyPath, folders: Sequence[str]) -> Iterator[str]:
    """Yield those of some folders that hold a set."""
    looked = map_ahead(lambda name: (path / name / MANIFEST).is_file(), folders, threads=THREADS)
    return compress(folders, looked)


def kind_of(format_name: object) -> str | None:
    """Return ``an image set`` or ``a latent set`` for a manifest's `format`, None for others."""
    return KINDS.get(str(format_name).rpartition("/")[0])


def _by_manifest(path: AnyPath) -> str:
    try:
        kind = kind_of(json.loads(path.read_bytes())["format"])
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    return f"this is {kind}" if kind else f"this folder has a {MANIFEST} of another program"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

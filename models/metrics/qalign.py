"""Q-Align as a metric of the catalogue; the network is in models/qalign.

As for every metric of the catalogue, nothing is downloaded.
"""

from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import CheckpointNotFoundError
from models.metrics.catalog import Judge, to_pixels
from models.qalign.checkpoint import Checkpoint
from models.qalign.scorer import QAlign

PUBLISHED = "q-future/one-align"


def load(variant: str, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load Q-Align in float16 on CUDA, else in float32.

    Args:
        variant: name of the question asked, see `models.qalign.prompts.PROMPTS`.
        folder: with the published files; None: those of `PUBLISHED` in the hub's cache.
        device: where to score.

    Raises:
        ValueError: the files are missing, damaged or of another model.
    """
    model = QAlign.load(files_in(folder), device, prompt=variant)

    def compute(images: Tensor) -> Tensor:
        scores = model.score(to_pixels(images))
        return torch.tensor([score.value for score in scores], dtype=torch.float64)

    return Judge(compute, model.digest)


def identify(_variant: str, folder: str | Path | None, _device: torch.device | str) -> str:
    """Return the digest of the published files without loading them.

    Raises:
        ValueError: see `load`.
    """
    return Checkpoint.open(files_in(folder)).digest


def files_in(folder: str | Path | None) -> Path:
    """Return the folder of the published files: the one given, or that in the hub's cache.

    Raises:
        CheckpointNotFoundError: they are not there; it says how to get them.
    """
    if folder is None:
        return cached()
    if not (Path(folder) / "config.json").exists():
        raise CheckpointNotFoundError(
            f"{Path(folder) / 'config.json'}: no such file; get the files of {PUBLISHED} (15 GB) "
            f"by `hf download {PUBLISHED} --local-dir FOLDER`, into a folder of their own"
        )
    return Path(folder)


def cached() -> Path:
    """Return the folder of the published files in the hub's cache.

    Raises:
        CheckpointNotFoundError: they are not there; it says how to get them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(PUBLISHED, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{PUBLISHED}: not in the cache of the hub; get it (15 GB) by `hf download {PUBLISHED}`"
        ) from error

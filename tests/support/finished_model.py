"""A finished model to register; imports little, so that a process that needs one starts quickly."""

from pathlib import Path
from typing import Any

from infra.storage import write_bytes
from infra.tracking.models import FinishedModel


def finished(folder: Path, digest: str = "ab" * 32, **facts: Any) -> FinishedModel:
    """Write two files, one below a folder, as a model of such weights."""
    write_bytes(folder / "config.json", b'{"width": 8}')
    write_bytes(folder / "parts" / "weights.safetensors", digest.encode() * 100_000)
    return FinishedModel(
        name="sim-vae",
        folder=folder,
        digest=digest,
        facts={"step": 200, "data": {"faces": "cd" * 32}, **facts},
        inputs={"x_t": (-1, 4, 8, 8), "t": (-1,)},
        outputs={"velocity": (-1, 4, 8, 8)},
        use="`load(FOLDER)`",
    )

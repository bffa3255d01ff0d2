"""What each rank of a run in a bucket does with checkpoints, where every rank has its own disk.

RANK=0 WORLD_SIZE=2 ... python -m tests.support.two_machines URI FOLDER
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from infra.distributed import rank
from infra.errors import UserError
from infra.storage import write_bytes
from trainers.loop.config import LoopConfig
from trainers.loop.integrity import seal
from trainers.loop.place import Place, held


def on_disk(name: str, folder: Path, uri: str, do: Callable[[Place], object]) -> object:
    """Start the run on a machine with this disk, and do something; returns what came of it."""
    os.environ["XDG_CACHE_HOME"] = str(folder / name)
    (folder / name).mkdir(exist_ok=True)
    try:
        with held(LoopConfig(output=uri)) as place:
            place.begin()
            return do(place)
    except UserError as error:
        return str(error)


def save(step: int) -> Callable[[Place], object]:
    """Return what writes a checkpoint as an engine does: one file of the run, one of each rank."""

    def write(place: Place) -> object:
        folder = place.store.folder / f"step-{step:08d}"
        if rank() == 0:
            write_bytes(folder / "model", b"weights")
        write_bytes(folder / "engine" / f"rank-{rank()}", bytes([rank()]) * step)
        problem = seal(folder, place.store.here)
        place.store.publish(folder.name)
        return [problem, place.store.complete()]

    return write


def read(place: Place) -> object:
    """Bring the newest checkpoint to this machine; returns its files and their lengths."""
    name = place.store.complete()[-1]
    problem = place.store.bring(name)
    files = (place.store.folder / name).rglob("*")
    return [name, problem, {path.name: path.stat().st_size for path in files if path.is_file()}]


def main(uri: str, folder: Path) -> None:
    """Save, be refused, start again, on the same disk and on others; print what came of each."""
    torch.distributed.init_process_group("gloo")
    mine, fresh = f"first-{rank()}", f"second-{rank()}"
    said = [
        on_disk(mine, folder, uri, save(4)),
        on_disk(mine, folder, uri, save(8)),  # of which one file is refused
        on_disk(fresh, folder, uri, read),
        on_disk(mine, folder, uri, read),
        on_disk(fresh, folder, uri, read),
        on_disk(mine, folder, uri, save(12)),  # so is this
        on_disk(mine if rank() == 0 else fresh, folder, uri, read),
        on_disk(mine, folder, str(folder / mine / "run"), read),  # one that the other cannot see
    ]
    torch.distributed.destroy_process_group()
    sys.stdout.write("\n" + json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

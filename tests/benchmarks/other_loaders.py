"""The same pairs through other libraries: webdataset, mosaicml-streaming, litdata.

Each reads from its own format in its own way, and gives batches of both latents.
"""

import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader

Epoch = Callable[[int], object]  # takes the number of passes over the files
Row = tuple[Any, Any]  # source and target, [C, h, w]
WORKERS = (0, 1, 2)


def consume(batches: Iterable[object]) -> None:
    """Ask for all batches; each is gone before the next, as once it is on its device."""
    deque(batches, maxlen=0)


def webdataset(tars: Path, batch: int) -> dict[str, Epoch]:
    """Read tars of pairs as its documentation does, in tar order: a shuffle would only add."""
    names = [str(path) for path in sorted(tars.glob("*.tar"))]

    def epoch(workers: int, passes: int) -> None:
        data = wds.WebDataset(names, shardshuffle=False).decode()
        pairs = data.to_tuple("source.npy", "target.npy").repeat(passes)
        consume(wds.WebLoader(pairs, batch_size=batch, num_workers=workers))

    return {f"webdataset, {workers} workers": partial(epoch, workers) for workers in WORKERS}


def importable(folder: Path, rows: Iterable[Row], batch: int) -> dict[str, Epoch]:
    """Prepare the libraries that can be imported, each with its own copy of the pairs."""
    found: dict[str, Epoch] = {}
    written = list(rows)
    for name, prepare in (("mosaicml-streaming", _streaming), ("litdata", _litdata)):
        try:
            found |= prepare(folder / name, written, batch)
        except ImportError as error:
            sys.stderr.write(f"{name} is left out: {error}\n")
    return found


def _streaming(folder: Path, rows: list[Row], batch: int) -> dict[str, Epoch]:
    import transformers.feature_extraction_utils  # noqa: F401  (looks for torchvision: before the stub)

    # It takes two names from torchvision, for images, and torchvision has no CPU build here.
    for name, content in (("datasets", "VisionDataset"), ("transforms.functional", "to_tensor")):
        stub = types.ModuleType(f"torchvision.{name}")
        setattr(stub, content, torch.utils.data.Dataset)
        sys.modules |= {"torchvision": types.ModuleType("torchvision"), stub.__name__: stub}
    from streaming import MDSWriter, StreamingDataset

    kind = f"ndarray:float16:{','.join(map(str, rows[0][0].shape))}"
    with MDSWriter(out=str(folder), columns={"source": kind, "target": kind}) as out:
        for source, target in rows:
            out.write({"source": source, "target": target})

    def epoch(workers: int, passes: int) -> None:
        data = StreamingDataset(
            local=str(folder), shuffle=True, batch_size=batch, num_canonical_nodes=1
        )
        loader = DataLoader(data, batch, num_workers=workers, persistent_workers=workers > 0)
        for _ in range(passes):
            consume(loader)

    return {f"streaming, {workers} workers": partial(epoch, workers) for workers in WORKERS}


def _litdata(folder: Path, rows: list[Row], batch: int) -> dict[str, Epoch]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes="64MB")
    for number, (source, target) in enumerate(rows):
        cache[number] = {"source": torch.from_numpy(source), "target": torch.from_numpy(target)}
    cache.done()
    cache.merge()

    def epoch(workers: int, passes: int) -> None:
        data = StreamingDataset(str(folder), shuffle=True)
        loader = StreamingDataLoader(
            data, batch_size=batch, num_workers=workers, persistent_workers=workers > 0
        )
        for _ in range(passes):
            consume(loader)

    return {f"litdata, {workers} workers": partial(epoch, workers) for workers in WORKERS}

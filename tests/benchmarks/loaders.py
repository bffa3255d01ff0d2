"""What reading latents costs: `OMP_NUM_THREADS=1 python -m tests.benchmarks.loaders`.

Pairs of float16 [32, 64, 64] (512 KiB) in batches of 64, in CPU time of the process and its
workers. The floor is one bare `preadv` per pair, in random order, into one preallocated batch.
webdataset reads the same latents its own way, in tar order, from tars that hold the pairs and
nothing else (from ours it would also read the flip that is not wanted). mosaicml-streaming and
litdata, where they can be imported, read the same arrays from their own formats, shuffled. Whoever
reads, a batch is dropped before the next is asked for.

Warm, an epoch is 24 passes over files in the page cache, start and end included: 24,576 pairs, a
third of FFHQ. Cold, it is one pass over files that have left it. Every contestant takes turns with
the floor. The machine is shared: medians of the ratios are kept, and the ratio of the least CPU
times, which is nearest to an idle machine.
"""

import argparse
import gc
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from datasets.latent_format import LatentFormat, LatentSample
from datasets.latent_pairs import PAIR, PAIRS
from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout, Order
from datasets.shards import parquet_bytes, write_shard
from infra.config import to_dict
from tests.benchmarks.harness import RUNS, save
from tests.benchmarks.other_loaders import Epoch, consume, importable, webdataset
from tests.support.published_sets import finish, sample, write_latents

FORM = LatentFormat(channels=32, height=64, width=64)
BATCH = 64
PASSES = 24
PER_SHARD = 128
OURS = {
    "when asked": LoaderConfig(workers=0),
    "1 thread": LoaderConfig(workers=1),
    "2 threads": LoaderConfig(workers=2),
    "2 processes": LoaderConfig(workers=2, processes=True, start_method="fork"),
}


def main() -> None:
    """Measure, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1024, help="a multiple of 128")
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, pairs)
        contestants = {
            **{f"ours, {how}": partial(ours, folder, config) for how, config in OURS.items()},
            **webdataset(folder / "pairs", BATCH),
            **importable(folder, stored(folder, pairs), BATCH),
        }
        bare = floor(folder)
        gc.collect()
        gc.freeze()  # what was imported is not searched again: `cost` collects after every epoch
        measured = {
            "pairs": pairs,
            "pair_bytes": 2 * FORM.data_bytes,
            "warm": {
                name: compare(name, partial(bare, PASSES), partial(epoch, PASSES), PASSES * pairs)
                for name, epoch in contestants.items()
            },
            "cold": {
                name: compare(
                    f"{name}, cold", partial(bare, 1), partial(epoch, 1), pairs, forgotten=folder
                )
                for name, epoch in contestants.items()
            },
            "first_batch_s": first_batches(folder),
            "large_set": large_set(folder / "large"),
        }
    save("loaders", measured, "torch", "webdataset", "numpy", "pyarrow")


def write(folder: Path, pairs: int) -> None:
    """Write a latent set, and tars of its pairs alone."""
    made = [sample(FORM, "x", [n], flip=lambda n: n % 2 == 1) for n in range(16)]
    samples = [
        LatentSample(key=f"{n:06d}", draws=made[n % 16].draws, targets=made[n % 16].targets)
        for n in range(pairs)
    ]
    write_latents(folder / "latents", samples, FORM, per_shard=PER_SHARD)
    for start in range(0, pairs, PER_SHARD):
        contents = (
            (one.key, {"source.npy": FORM.encode(one.draws[0].source), "target.npy": target(one)})
            for one in samples[start : start + PER_SHARD]
        )
        write_shard(folder / "pairs" / f"train-{start // PER_SHARD:06d}.tar", contents)


def target(one: LatentSample) -> bytes:
    """Encode the target of a sample's only draw."""
    assert one.targets is not None
    return FORM.encode(one.targets[one.draws[0].flip])


def floor(folder: Path) -> Epoch:
    """Prepare the floor: places in random order, open files, one batch of memory."""
    pairs = LatentPairs(folder / "latents")
    shards = sorted((folder / "latents").glob("*.tar"))
    files = {shard.name: os.open(shard, os.O_RDONLY) for shard in shards}
    draw = Order(pairs.weighted_sets, digest="", seed=0).at(np.arange(pairs.weighted_sets[0].size))
    table = pq.read_table(folder / "latents" / PAIRS).take(pa.array(draw.index)).to_pylist()
    places = [
        (files[row["source_shard"]], min(row["source_offset"], row["target_offset"]) + 128)
        for row in table
    ]
    size = 2 * FORM.data_bytes
    batch = memoryview(np.zeros(BATCH * size, np.uint8))

    def epoch(passes: int) -> None:
        for number, (file, offset) in enumerate(places * passes):
            row = number % BATCH
            os.preadv(file, [batch[row * size : (row + 1) * size]], offset)

    return epoch


def ours(folder: Path, config: LoaderConfig, passes: int) -> None:
    """Read with our loader."""
    pairs = LatentPairs(folder / "latents")
    steps = passes * pairs.weighted_sets[0].size // BATCH
    consume(islice(Loader(pairs, Layout(micro_batch=BATCH), config), steps))


def stored(folder: Path, pairs: int) -> Iterator[tuple[Any, Any]]:
    """Yield what other libraries write: as many pairs, of the first 16."""
    arrays = LatentPairs(folder / "latents")
    one = next(iter(Loader(arrays, Layout(micro_batch=16), LoaderConfig(workers=0))))[0]
    for number in range(pairs):
        yield one.source[number % 16].numpy(), one.target[number % 16].numpy()


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def cost(epoch: Callable[[], object]) -> tuple[float, float]:
    """Run an epoch to the end of its workers; returns CPU and wall seconds."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    epoch()
    gc.collect()  # ends worker processes, whose time counts only then
    return cpu_seconds() - cpu, time.perf_counter() - wall


def compare(
    name: str,
    bare: Callable[[], object],
    epoch: Callable[[], object],
    count: int,
    *,
    forgotten: Path | None = None,
) -> dict[str, float]:
    """Compare a contestant with the floor, taking turns.

    Args:
        name: for the progress.
        bare: an epoch of the floor.
        epoch: one of the contestant.
        count: pairs of either.
        forgotten: a folder whose files leave the page cache before every epoch.
    """
    rounds = []
    for _ in range(RUNS + 1):
        costs = []
        for one in (bare, epoch):
            if forgotten is not None:
                forget(forgotten)
            costs.append(cost(one))
        rounds.append((costs[0][0], *costs[1]))
    rounds = rounds[1:]  # the first warms up
    shares = [bottom / cpu for bottom, cpu, _ in rounds]
    least = [min(column) for column in zip(*rounds, strict=True)]
    sys.stderr.write(f"{name}: {statistics.median(shares):.3f} of the floor\n")
    return {
        "share_of_floor": statistics.median(shares),
        "share_min": min(shares),
        "share_max": max(shares),
        "share_least_disturbed": least[0] / least[1],
        "pairs_per_cpu_s": statistics.median(count / cpu for _, cpu, _ in rounds),
        "pairs_per_s": statistics.median(count / wall for _, _, wall in rounds),
        "floor_pairs_per_cpu_s": statistics.median(count / cpu for cpu, _, _ in rounds),
    }


def forget(folder: Path) -> None:
    """Make the files of a folder leave the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_batches(folder: Path) -> dict[str, float]:
    """Time from nothing to the first batch, at the beginning and at half an epoch."""
    ways = {**OURS, "1 process of a fork server": LoaderConfig(workers=1, processes=True)}
    measured = {}
    for how, config in ways.items():
        for name, half in (("begin", False), ("resume at half", True)):
            seconds = []
            for _ in range(RUNS):
                start = time.perf_counter()
                pairs = LatentPairs(folder / "latents")
                loader = Loader(pairs, Layout(micro_batch=BATCH), config)
                if half:
                    state = {**loader.state, "offset": pairs.weighted_sets[0].size // 2}
                    loader = Loader(pairs, Layout(micro_batch=BATCH), config, state)
                next(iter(loader))
                seconds.append(time.perf_counter() - start)
                del loader
                gc.collect()
            measured[f"{how}, {name}"] = statistics.median(seconds)
    return measured


def large_set(folder: Path) -> dict[str, float]:
    """Open the table of 70,000 images x 16 draws and find half of epoch 100; nothing is read."""
    images, draws = 70_000, 16
    keys = [f"{number:05d}" for number in range(images) for _ in range(draws)]
    count = len(keys)
    shards = pa.array(["train-000000.tar"]).take(pa.array(np.zeros(count, np.int64)))
    offsets = pa.array(np.arange(count) * 1024)
    sizes = pa.array(np.full(count, FORM.member_bytes))
    checksums = pa.array(np.random.default_rng(0).integers(1 << 32, size=count, dtype=np.uint32))
    columns = [
        pa.array(keys),
        pa.array(["train"]).take(pa.array(np.zeros(count, np.int64))),
        pa.array(np.tile(np.arange(draws, dtype=np.int32), images)),
        pa.array(np.tile(np.arange(draws) % 2 == 1, images)),
        pa.array(np.zeros(count, bool)),
        *(shards, offsets, sizes, checksums, shards, offsets, sizes, checksums),
    ]
    folder.mkdir()
    (folder / PAIRS).write_bytes(parquet_bytes(pa.table(columns, schema=PAIR)))
    finish(
        folder,
        [write_shard(folder / "train-000000.tar", [])],
        "latent set",
        [PAIRS],
        latent=to_dict(FORM),
    )
    start = time.perf_counter()
    pairs = LatentPairs(folder)
    opened = time.perf_counter()
    order = Order(pairs.weighted_sets, digest=pairs.digest, seed=0)
    order.at(Layout(micro_batch=BATCH).share(images * 100 + images // 2))
    return {"open_s": opened - start, "position_s": time.perf_counter() - opened}


if __name__ == "__main__":
    main()

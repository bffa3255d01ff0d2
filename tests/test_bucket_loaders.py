"""Sets in a bucket: the same batches as from a disk, many requests under way, and whose fault."""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from webdataset.gopen import gopen

from datasets.latent_pairs import PAIRS, pair_table
from datasets.reading.image_set import ImageSet
from datasets.reading.images import Crops
from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.memory import Memory
from datasets.reading.order import Layout, Picks
from datasets.reading.ranges import Cache
from datasets.sets import open_set
from datasets.shards import read_table, scan
from datasets.verify import problems
from datasets.webdataset_shards import SetShards
from infra.errors import UsageError, UserError
from infra.folders.contract import Missing, Unavailable
from infra.paths import AnyPath, path_of, write_bytes
from infra.s3 import client, retries
from infra.s3.retries import Faults, Patience
from tests.conftest import PATIENCE, free_port, picture
from tests.support import encoding_jobs
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.published_sets import SMALL, sample, write_images, write_latents
from trainers.loop.config import LoopConfig
from trainers.recipes.data import open_images

COUNT = 20
ALONE = LoaderConfig(workers=0)
TWO = Layout(ranks=2, rank=1, micro_batch=4)
MANY = 10**6
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish latents of twenty images, two draws each, and twenty images."""
    folder = tmp_path_factory.mktemp("disk")
    write_latents(folder / "latents", [sample(SMALL, f"{n:02d}", [0, 1, 2]) for n in range(COUNT)])
    images = [(f"{n:02d}", np.asarray(picture(n, 24, 24))) for n in range(COUNT)]
    write_images(folder / "images", images)
    return folder


@pytest.fixture(scope="module")
def uploaded(disk: Path, s3_proxy: FaultyProxy) -> AnyPath:
    """Copy both sets to the bucket."""
    return copied(disk, "s3://tests/loaders")


@pytest.fixture
def bucket(
    uploaded: AnyPath, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AnyPath]:
    """The sets in the bucket, no faults yet, and no time to lose between attempts."""
    hasty = Patience(attempts=4, first_delay=0.001, unreachable=0.01)
    monkeypatch.setattr(retries, "patience", lambda: hasty)
    monkeypatch.setattr(retries, "_faults", Faults())
    s3_proxy.harmless()
    yield uploaded
    s3_proxy.harmless()


def copied(folder: Path, uri: str) -> AnyPath:
    """Copy a folder to the bucket; returns where it is."""
    target = path_of(uri)
    for path in sorted(path for path in folder.rglob("*.*") if path.is_file()):
        (target / path.relative_to(folder)).parent.folder.put(path.name, path.read_bytes())
    return target


def open_latents(folder: AnyPath, cache: Cache | None = None) -> LatentPairs:
    """Open the latents of a folder with both sets."""
    return LatentPairs(folder / "latents", cache=cache, checked=True)


def open_crops(folder: AnyPath, cache: Cache | None = None) -> Crops:
    """Open crops of the images of a folder with both sets."""
    return Crops([ImageSet(folder / "images", cache=cache)], crop=16)


OPENED: dict[str, Callable[..., Any]] = {"latents": open_latents, "images": open_crops}
kinds = pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)


def same(one: Any, other: Any) -> None:
    """Compare two batches to the bit."""
    for name in ("source", "target", "images"):
        if hasattr(one, name):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.keys, one.skipped) == (other.keys, other.skipped)


def compare(expected: Loader[Any], found: Loader[Any], batches: int) -> None:
    """Compare batches and positions of two loaders."""
    pairs = zip(islice(expected, batches), islice(found, batches), strict=True)
    for (batch, state), (other, other_state) in pairs:
        same(batch, other)
        assert state == other_state
    assert expected.skipped == found.skipped


def picks(*index: int) -> Picks:
    """Ask for samples by number."""
    numbers = np.array(index)
    return Picks(np.zeros_like(numbers), numbers, np.zeros_like(numbers), 0)


@kinds
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_bucket_are_those_of_the_disk(
    disk: Path, bucket: AnyPath, opened: Callable[..., Any], workers: int
) -> None:
    """To the bit, with the same states, over two epochs; and the rest on another layout."""
    expected = Loader(opened(disk), TWO, ALONE)
    found = Loader(opened(bucket), TWO, LoaderConfig(workers=workers))
    compare(expected, found, 6)
    three = Layout(ranks=1, rank=0, micro_batch=5)
    compare(
        Loader(opened(disk), three, ALONE, found.state),
        Loader(opened(bucket), three, ALONE, expected.state),
        3,
    )


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        pytest.param("fork", 2, marks=pytest.mark.forks),
        ("forkserver", 1),
        pytest.param("spawn", 1, marks=pytest.mark.slow),
    ],
)
def test_processes_that_read_ahead_read_a_bucket(
    disk: Path, bucket: AnyPath, tmp_path: Path, method: str, workers: int
) -> None:
    """However they start, after this process has used its client; with a cache that they share."""
    found = open_crops(bucket, Cache(tmp_path, 10**9))
    config = LoaderConfig(workers=workers, processes=True, start_method=method)
    compare(Loader(open_crops(disk), TWO, ALONE), Loader(found, TWO, config), 5)


@kinds
def test_a_cache_holds_what_was_read_up_to_its_limit(
    disk: Path, bucket: AnyPath, s3_proxy: FaultyProxy, tmp_path: Path, opened: Callable[..., Any]
) -> None:
    """Cold and warm batches are those of the disk; warm ones ask for nothing, a full cache does."""
    whole, small = Cache(tmp_path / "whole", 10**9), Cache(tmp_path / "small", 6000)
    for _ in range(2):
        compare(Loader(opened(disk), TWO, ALONE), Loader(opened(bucket, whole), TWO, ALONE), 15)
    s3_proxy.seen.clear()
    compare(Loader(opened(disk), TWO, ALONE), Loader(opened(bucket, whole), TWO, ALONE), 15)
    assert shards_read(s3_proxy) == []

    compare(Loader(opened(disk), TWO, ALONE), Loader(opened(bucket, small), TWO, ALONE), 8)
    assert shards_read(s3_proxy)
    assert 0 < sum(file.stat().st_size for file in small.folder.glob("*/*")) <= small.limit


def shards_read(proxy: FaultyProxy) -> list[str]:
    """Return the ranges of shards that were asked for."""
    return [one.headers["Range"] for one in proxy.seen if one.path.endswith(".tar")]


@kinds
@pytest.mark.parametrize("cached", [False, True])
def test_all_of_a_batch_is_asked_for_at_once(
    bucket: AnyPath,
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    opened: Callable[..., Any],
    cached: bool,
) -> None:
    """Four samples of four shards wait for each other at the server; no pair is two requests."""
    samples = opened(bucket, Cache(tmp_path, 10**9) if cached else None)
    meeting = threading.Barrier(4)
    s3_proxy.faults.append(Fault(path=".tar", times=4, before=lambda: _meet(meeting)))
    batch = samples.load(picks(0, 5, 10, 15), Memory("reused"))

    assert batch.keys == ["00", "05", "10", "15"]
    assert not meeting.broken
    assert len(shards_read(s3_proxy)) == 4
    assert s3_proxy.count("HEAD") == 0


def _meet(meeting: threading.Barrier) -> None:
    meeting.wait(PATIENCE)


@kinds
@pytest.mark.parametrize(
    "fault",
    [{"status": 503, "code": "SlowDown"}, {"reset": True}, {"truncate": 300}, {"status": 403}],
    ids=["busy", "reset", "cut off", "refused for a moment"],
)
def test_what_passes_costs_no_sample(
    disk: Path,
    bucket: AnyPath,
    s3_proxy: FaultyProxy,
    opened: Callable[..., Any],
    fault: dict[str, Any],
) -> None:
    """In the midst of an epoch: the same batches, nothing skipped, and the failures are counted."""
    expected, found = (Loader(opened(folder), TWO, ALONE) for folder in (disk, bucket))
    compare(expected, found, 1)
    s3_proxy.faults.append(Fault(path=".tar", times=2, **fault))
    compare(expected, found, 4)

    assert found.skipped == 0
    assert sum(retries.faults().counts().values()) == 2


@kinds
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 403, "code": "AccessDenied"}, "missing or forbidden.*s3:GetObject"),
        ({"status": 400, "code": "ExpiredToken"}, "the credentials have expired"),
        ({"reset": True}, "the connection to .* broke"),
        ({}, "cannot be reached"),
        ({"status": 404, "code": "NoSuchBucket"}, "there is no bucket tests"),
    ],
    ids=["refused", "expired", "broken", "away", "no bucket"],
)
def test_a_store_that_fails_for_good_ends_the_run(
    bucket: AnyPath,
    s3_proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[..., Any],
    fault: dict[str, Any],
    said: str,
) -> None:
    """No budget of unreadable samples covers it: nothing is wrong with them."""
    loader = Loader(opened(bucket), TWO, LoaderConfig(workers=1, skip_budget=1000))
    batches = iter(loader)
    next(batches)
    s3_proxy.faults.append(Fault(times=MANY, **fault))
    if not fault:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setattr(client, "_connection", client.Connection())
    with pytest.raises(Unavailable, match=f"^s3://tests/loaders/.*{said}"):
        list(batches)

    assert loader.skipped == 0


@pytest.mark.forks
def test_a_store_that_is_away_ends_a_loader_of_processes(
    bucket: AnyPath, s3_proxy: FaultyProxy
) -> None:
    """A worker's refusal comes to the trainer as the same sentence."""
    config = LoaderConfig(workers=1, processes=True, start_method="fork", skip_budget=1000)
    loader = Loader(open_crops(bucket), TWO, config)
    s3_proxy.faults.append(Fault(times=MANY, status=403, code="AccessDenied"))
    with pytest.raises(Unavailable, match=r"^s3://tests/loaders/.*missing or forbidden.*$"):
        next(iter(loader))


def lost(folder: AnyPath) -> None:
    """Delete a shard."""
    (folder / "train-000001.tar").unlink()


def cut(folder: AnyPath) -> None:
    """Cut a shard off."""
    write_bytes(folder / "train-000001.tar", (folder / "train-000001.tar").read_bytes()[:-1024])


def overwritten(folder: AnyPath) -> None:
    """Overwrite a shard by zeros of its length."""
    length = len((folder / "train-000001.tar").read_bytes())
    write_bytes(folder / "train-000001.tar", bytes(length))


@kinds
@pytest.mark.parametrize("harm", [lost, cut, overwritten])
def test_what_is_wrong_with_a_shard_is_counted_as_on_a_disk(
    disk: Path,
    bucket: AnyPath,
    tmp_path: Path,
    opened: Callable[..., Any],
    harm: Callable[[AnyPath], None],
) -> None:
    """As many samples are skipped, and as many are allowed; the messages name the shard."""
    name = "latents" if opened is open_latents else "images"
    here = Path(shutil.copytree(disk / name, tmp_path / name)).parent
    there = copied(here, f"s3://tests/harmed/{name}-{harm.__name__}")
    sets = [opened(folder) for folder in (here, there)]
    for folder in (here, there):
        harm(folder / name)
    layout = Layout(micro_batch=10)
    for (batch, _), (other, _) in zip(
        *(islice(Loader(one, layout, LoaderConfig(workers=0, skip_budget=10)), 4) for one in sets),
        strict=True,
    ):
        assert batch.keys == other.keys
        assert len(batch.skipped) == len(other.skipped)
        assert all("train-000001.tar" in message for message in other.skipped)
    for one in sets:
        with pytest.raises(UserError, match=r"train-000001\.tar.*skip_budget is 4"):
            list(Loader(one, layout, LoaderConfig(workers=0, skip_budget=4)))


def test_a_cache_is_a_folder_of_a_disk(disk: Path) -> None:
    """One in a bucket is refused before anything is read; the remedy works."""
    config = LoopConfig(output="run", cache="s3://tests/cache")
    with pytest.raises(UsageError, match=r"^s3://tests/cache: .*give the path of a local folder"):
        open_images(str(disk / "images"), config)
    assert len(open_images(str(disk / "images"), replace(config, cache=str(disk / "cache"))))


def test_a_set_that_was_replaced_in_the_bucket_ends_the_run(
    disk: Path, bucket: AnyPath, tmp_path: Path
) -> None:
    """As on a disk: another set under the same name is neither read nor skipped."""
    folder = copied(disk, "s3://tests/replaced")
    loader = Loader(open_latents(folder), TWO, LoaderConfig(workers=0, skip_budget=1000))
    other = write_latents(tmp_path / "latents", [sample(SMALL, f"new {n}") for n in range(COUNT)])
    copied(other.parent, "s3://tests/replaced")
    with pytest.raises(UserError, match=r"replaced was replaced while|latents was replaced while"):
        list(loader)


def test_samples_and_labels_are_those_of_the_disk(
    curated: Path, bucket: AnyPath, s3_proxy: FaultyProxy
) -> None:
    """As encoding reads them: a shard's images with their records by one request."""
    here, there = ImageSet(curated), ImageSet(copied(curated, "s3://tests/curated"))
    rows = [here.row(number) for number in range(len(here))]
    assert there.size == here.size
    assert list(there.labels(rows)) == list(here.labels(rows))
    s3_proxy.seen.clear()
    for one, other in zip(here.samples(rows), there.samples(rows), strict=True):
        assert (one.key, one.label) == (other.key, other.label)
        assert np.array_equal(one.image, other.image)

    assert len(shards_read(s3_proxy)) == len(here.manifest["shards"])


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curate a few pictures."""
    return encoding_jobs.write_images(tmp_path_factory.mktemp("curated"), 5)


def test_a_set_in_a_bucket_is_verified_by_one_read_of_each_shard(
    curated: Path, bucket: AnyPath, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """A whole set has no problems, a damaged one those that it has on a disk."""
    here = Path(shutil.copytree(curated, tmp_path / "set"))
    there = copied(here, "s3://tests/verified")
    s3_proxy.seen.clear()
    assert list(problems(there)) == []
    shards = [one.path for one in s3_proxy.seen if one.method == "GET" and ".tar" in one.path]
    assert len(shards) == len(set(shards)) == len(list(here.glob("*.tar")))

    first, last = sorted(path.name for path in here.glob("*.tar"))
    damaged = bytearray((here / first).read_bytes())
    damaged[1000] ^= 1
    for folder in (here, there):
        write_bytes(folder / first, bytes(damaged))
        (folder / last).unlink()
    found = list(problems(there))
    assert found == list(problems(here))
    assert found[0].startswith(f"{first}: SHA-256 ")
    assert f"{last}: missing" in found


def test_a_store_that_fails_is_no_problem_of_a_set(
    curated: Path, bucket: AnyPath, s3_proxy: FaultyProxy
) -> None:
    """Verification ends with the store's sentence, and calls nothing damaged."""
    there = copied(curated, "s3://tests/unverified")
    for skip in range(12):
        s3_proxy.faults = [Fault(times=MANY, method="GET", skip=skip, status=501)]
        try:
            assert list(problems(there)) == []
        except Unavailable:
            continue
        break

    assert skip > 4  # the manifest, the tables and the shards failed, each in its turn


def test_the_pair_table_of_shards_in_a_bucket(
    disk: Path, bucket: AnyPath, s3_proxy: FaultyProxy
) -> None:
    """It is that of the disk, and the records of four shards are read at once."""
    folder = bucket / "latents"
    shards = [scan(folder / f"train-{number:06d}.tar") for number in range(4)]
    meeting = threading.Barrier(4)
    s3_proxy.faults.append(Fault(path=".tar", times=4, before=lambda: _meet(meeting)))

    assert pair_table(folder, shards).equals(read_table(disk / "latents" / PAIRS))
    assert not meeting.broken


@pytest.mark.parametrize("how", ["a set", "a URL"])
def test_webdataset_reads_a_set_in_a_bucket(
    disk: Path, bucket: AnyPath, s3_proxy: FaultyProxy, how: str
) -> None:
    """By our opener: the samples of the disk in their order, over a connection that breaks."""
    expected = list(SetShards(open_set(disk / "latents", "latent set")))
    s3_proxy.faults.append(Fault(path=".tar", method="GET", times=3, truncate=1000))
    if how == "a set":
        found = list(SetShards(open_set(bucket / "latents", "latent set")))
    else:
        urls = f"{bucket}/latents/train-{{000000..000003}}.tar"
        found = list(webdataset.WebDataset(urls, shardshuffle=False))

    assert len(found) == COUNT
    for one, other in zip(expected, found, strict=True):
        assert contents(one) == contents(other)


def contents(one: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a sample of webdataset, without where it was read."""
    return {name: one[name] for name in one if name not in ("__url__", "__local_path__")}


def test_webdataset_says_what_is_missing(bucket: AnyPath) -> None:
    """And a shard is not written through it."""
    with pytest.raises(Missing, match=r"s3://tests/loaders/none\.tar"):
        list(webdataset.WebDataset([f"{bucket}/none.tar"], shardshuffle=False))
    with pytest.raises(ValueError, match="shards in a bucket are written by"):
        gopen(f"{bucket}/new.tar", "wb")

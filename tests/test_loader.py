"""Loaders: the same batches by any worker, the same rest after any death, memory and budgets."""

import gc
import json
import multiprocessing
import os
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout
from infra.children import STOPPING
from infra.errors import UsageError, UserError
from tests.conftest import PATIENCE
from tests.support.preloaded import Preloaded
from tests.support.processes import descendants, wait_for_end
from tests.support.published_sets import SMALL, sample, write_latents

COUNT = 40
ALONE = LoaderConfig(workers=0)
CONFIGS = {
    "alone": ALONE,
    "threads": LoaderConfig(workers=3),
    "fork": LoaderConfig(workers=2, processes=True, start_method="fork"),
    "forkserver": LoaderConfig(workers=1, processes=True),
    "spawn": LoaderConfig(workers=1, processes=True, start_method="spawn"),
}
FORK = pytest.param("fork", marks=pytest.mark.forks)
KINDS = ["alone", "threads", FORK, "forkserver", "spawn"]
OFTEN = [*KINDS[:-1], pytest.param("spawn", marks=pytest.mark.slow)]
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish forty images of two draws each."""
    samples = [sample(SMALL, f"{number:02d}", [0, 1]) for number in range(COUNT)]
    return write_latents(tmp_path_factory.mktemp("set"), samples)


@pytest.fixture
def damaged(tmp_path: Path) -> LatentPairs:
    """Publish ten images in two shards, one of which goes after the set was opened."""
    folder = write_latents(tmp_path, [sample(SMALL, f"{number}") for number in range(10)])
    pairs = LatentPairs(folder)
    (folder / "train-000001.tar").unlink()
    return pairs


@pytest.mark.parametrize("name", KINDS)
def test_workers_change_nothing(folder: Path, name: str) -> None:
    """Whoever reads, the batches and states of two epochs are the same."""
    layout = Layout(ranks=2, rank=1, micro_batch=4)
    expected = iter(Loader(LatentPairs(folder), layout, ALONE))
    found = iter(Loader(LatentPairs(folder), layout, CONFIGS[name]))
    for _ in range(10):
        (batch, state), (other, other_state) = next(expected), next(found)

        assert torch.equal(batch.source, other.source)
        assert torch.equal(batch.target, other.target)
        assert (batch.keys, batch.draws, batch.flips) == (other.keys, other.draws, other.flips)
        assert state == other_state


@pytest.mark.parametrize("name", OFTEN)
def test_a_loader_touches_no_global_generator(folder: Path, name: str) -> None:
    """The training's random numbers are the same whatever reads its data."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(Loader(LatentPairs(folder), Layout(micro_batch=4), CONFIGS[name])))

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["threads", FORK])
def test_the_state_counts_what_was_handed_out(folder: Path, name: str) -> None:
    """Batches read ahead by workers are not consumed: a new loader begins with the next one."""
    pairs, layout = LatentPairs(folder), Layout(micro_batch=6)
    expected = [batch.keys for batch, _ in islice(Loader(pairs, layout, ALONE), 9)]
    first = Loader(pairs, layout, CONFIGS[name])
    begun = list(islice(first, 3))
    state = json.loads(json.dumps(begun[-1][1]))
    rest = list(islice(Loader(pairs, layout, CONFIGS[name], state), 6))

    assert first.state == state
    assert [batch.keys for batch, _ in begun + rest] == expected


def test_a_loader_follows_the_order(folder: Path) -> None:
    """Every batch of a rank holds what stands at its positions, over two epochs and more."""
    layout = Layout(ranks=2, rank=1, micro_batch=3)
    loader = Loader(LatentPairs(folder), layout, ALONE)
    for step, (batch, _) in enumerate(islice(loader, 40)):
        expected = loader.order.at(layout.share(step * layout.stride)).index

        assert [int(key) for key in batch.keys] == expected.tolist()


def test_iterating_again_goes_on(folder: Path) -> None:
    """A loop that is left and entered again, as for a validation, loses and repeats nothing."""
    loader = Loader(LatentPairs(folder), Layout(micro_batch=8), LoaderConfig(workers=2))
    keys: list[str] = []
    for _ in range(5):
        for batch, _ in loader:
            keys += batch.keys
            break

    assert sorted(keys) == [f"{number:02d}" for number in range(COUNT)]


def test_a_batch_may_reach_into_the_next_epoch(folder: Path) -> None:
    """With 40 images and steps of 3 x 7, every image comes once per epoch and none is dropped."""
    pairs, seen = LatentPairs(folder), Counter[tuple[str, int]]()
    loaders = [
        iter(Loader(pairs, Layout(ranks=3, rank=rank, micro_batch=7), ALONE)) for rank in range(3)
    ]
    position = 0
    for _ in range(8):
        for number, loader in enumerate(loaders):
            batch, state = next(loader)
            for row, key in enumerate(batch.keys):
                seen[key, (position + 7 * number + row) // COUNT] += 1
        position += 21
        assert (state["epoch"], state["offset"]) == divmod(position, COUNT)

    assert {seen[f"{n:02d}", epoch] for n in range(COUNT) for epoch in range(4)} == {1}


def wait_for_lines(logs: list[Path], count: int) -> None:
    """Wait until every rank has logged so many batches."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not all(
        log.exists() and log.read_text().count("\n") >= count for log in logs
    ):
        time.sleep(0.02)


@pytest.mark.parametrize("method", ["", "fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_killed_ranks_resume_on_another_layout(folder: Path, tmp_path: Path, method: str) -> None:
    """SIGKILL in mid-epoch, then three ranks with other batches: every image once per epoch.

    Signals to the ranks' loader processes change nothing before, and none of them is left after.
    """
    logs = [tmp_path / f"rank-{rank}.jsonl" for rank in range(2)]
    running = [
        Preloaded("tests.support.loader_rank", [folder, log, str(rank), "2", method], tmp_path)
        for rank, log in enumerate(logs)
    ]
    try:
        wait_for_lines(logs, 4)
        below = [pid for process in running for pid in descendants(process.pid)]
        for pid in below:
            for number in STOPPING:
                os.kill(pid, number)
        wait_for_lines(logs, 12)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert len(below) == {"": 0, "fork": 2, "forkserver": 4}[method] * len(running)
    assert not wait_for_end(below)
    lines = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    steps = min(map(len, lines))  # what all ranks had done is what a checkpoint would hold
    assert steps >= 12
    state = lines[0][steps - 1][1]
    assert state == lines[1][steps - 1][1]
    seen = [key for rank in lines for keys, _ in rank[:steps] for key in keys]

    left = 2 * COUNT - 6 * steps % COUNT  # to the end of this epoch, and one more
    left -= left % 4  # steps of 4 ranks x 1
    for rank in range(4):
        layout = Layout(ranks=4, rank=rank, micro_batch=1)
        loader = iter(Loader(LatentPairs(folder), layout, ALONE, state))
        seen += [next(loader)[0].keys[0] for _ in range(left // 4)]

    counts = Counter(seen)
    assert len(counts) == COUNT
    assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == 6 * steps + left


def test_a_sweep_meets_every_image_with_its_first_draw(folder: Path) -> None:
    """Validation is one plain pass, the same each time; the training's position stays."""
    loader = Loader(LatentPairs(folder), Layout(micro_batch=12), LoaderConfig(workers=2))
    passes = [
        [
            (key, k)
            for batch, count in loader.sweep()
            for key, k in list(zip(batch.keys, batch.draws, strict=True))[:count]
        ]
        for _ in range(2)
    ]

    assert passes[0] == passes[1]
    assert [key for key, _ in passes[0]] == [f"{number:02d}" for number in range(COUNT)]
    assert loader.state["offset"] == 0


@pytest.mark.parametrize("name", OFTEN)
def test_a_missing_shard_stops_with_its_name(damaged: LatentPairs, name: str) -> None:
    """Without a budget the first unreadable sample ends the run, in one sentence."""
    loader = Loader(damaged, Layout(micro_batch=5), CONFIGS[name])
    with pytest.raises(UserError, match=r"train-000001\.tar: No such file.*skip_budget is 0"):
        for _ in loader:
            pass


def test_the_skip_budget_is_counted_and_logged(
    damaged: LatentPairs, caplog: pytest.LogCaptureFixture
) -> None:
    """Five of ten images are gone: a budget of seven lasts an epoch and two samples more."""
    loader = Loader(damaged, Layout(micro_batch=5), LoaderConfig(skip_budget=7))
    batches = iter(loader)
    for batch, _ in islice(batches, 2):
        assert batch.source.shape[0] == 5
        assert set(batch.keys) <= {"0", "1", "2", "3", "4"}
    assert loader.skipped == 5
    with pytest.raises(UserError, match=r"8 unreadable samples on rank 0; skip_budget is 7"):
        list(batches)

    assert caplog.text.count("train-000001.tar") == 7


def test_a_batch_without_any_readable_sample_stops(damaged: LatentPairs) -> None:
    """No budget makes a batch of nothing."""
    (damaged.opened.folder / "train-000000.tar").unlink()
    loader = Loader(damaged, Layout(micro_batch=2), LoaderConfig(skip_budget=99))
    with pytest.raises(UserError, match="no sample of a batch of 2 could be read"):
        next(iter(loader))


def test_batches_that_are_kept_stay_what_they_were(folder: Path) -> None:
    """A consumer may hold any number of batches while the loader goes on."""
    pairs, layout = LatentPairs(folder), Layout(micro_batch=8)
    kept = [batch for batch, _ in islice(Loader(pairs, layout, CONFIGS["threads"]), 8)]
    again = [batch for batch, _ in islice(Loader(pairs, layout, ALONE), 8)]

    assert len({batch.source.data_ptr() for batch in kept}) == 8
    assert all(torch.equal(a.source, b.source) for a, b in zip(kept, again, strict=True))


@pytest.mark.forks
def test_leaving_a_loop_leaves_no_process_behind(folder: Path) -> None:
    """Workers end with the iteration that started them."""
    for _ in Loader(LatentPairs(folder), Layout(micro_batch=4), CONFIGS["fork"]):
        break
    gc.collect()

    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": -1}, "workers -1"),
        ({"ahead": 0}, "ahead 0"),
        ({"start_method": "thread"}, "start_method 'thread'"),
        ({"skip_budget": -1}, "skip_budget -1"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], message: str) -> None:
    """The message has what came and what is allowed."""
    with pytest.raises(UsageError, match=message):
        LoaderConfig(**values)  # type: ignore[arg-type]


def test_a_layout_is_refused_before_anything_is_read(folder: Path) -> None:
    """More samples in a step than in the set: said with the numbers, at construction."""
    with pytest.raises(UsageError, match=r"8 ranks x 6 samples = 48 .* only 40"):
        Loader(LatentPairs(folder), Layout(ranks=8, micro_batch=6), ALONE)


def test_a_set_made_anew_is_not_resumed(folder: Path, tmp_path: Path) -> None:
    """The manifest is part of the order: other data under the same path is noticed."""
    state = Loader(LatentPairs(folder), Layout(), ALONE).state
    other = write_latents(tmp_path, [sample(SMALL, f"{n:02d}", [0, 1, 2]) for n in range(COUNT)])
    with pytest.raises(UsageError, match="belongs to another order"):
        Loader(LatentPairs(other), Layout(), ALONE, state)


@pytest.mark.gpu
def test_pinned_batches_reach_the_gpu(folder: Path) -> None:
    """Threads read into page-locked memory; copies beside the computation are right."""
    config = LoaderConfig(workers=2, pin_memory=True)
    loaders = [Loader(LatentPairs(folder), Layout(micro_batch=8), c) for c in (config, ALONE)]
    for (batch, _), (expected, _) in islice(zip(*loaders, strict=True), 50):
        assert batch.source.is_pinned()
        copied = batch.source.to("cuda", non_blocking=True)
        del batch
        assert torch.equal(copied.cpu(), expected.source)

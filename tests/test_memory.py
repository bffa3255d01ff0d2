"""Memory of batches: one block again and again, on cache lines, as soon as nobody sees it."""

import gc
from itertools import islice
from pathlib import Path

import pytest
import torch

from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.memory import Memory
from datasets.reading.order import Layout
from tests.support.published_sets import SMALL, sample, write_latents


def test_memory_is_taken_again_once_nobody_sees_it() -> None:
    """A block returns when the last view of its tensor dies, and not before."""
    memory = Memory("reused")
    first = memory.take((4, 3), torch.float32)
    place, view = first.data_ptr(), first[1:, 0]
    del first
    assert memory.take((4, 3), torch.float32).data_ptr() != place
    del view
    gc.collect()

    assert {memory.take((4, 3), torch.float32).data_ptr() for _ in range(3)} >= {place}


@pytest.mark.parametrize("shape", [(3, 5), (2, 64, 4, 33, 31)])
def test_memory_begins_on_a_cache_line(shape: tuple[int, ...]) -> None:
    """Small blocks and large ones, which come from different places."""
    memory = Memory("reused")
    taken = [memory.take(shape, dtype) for dtype in (torch.uint8, torch.float16, torch.float32)]

    assert [tensor.data_ptr() % 64 for tensor in taken] == [0, 0, 0]
    assert {tensor.shape for tensor in taken} == {shape}


def test_a_dropped_batch_makes_room_for_the_next(tmp_path: Path) -> None:
    """A loader keeps no batch that it has handed out: all are read into one place."""
    folder = write_latents(tmp_path, [sample(SMALL, f"{number}") for number in range(8)])
    loader = Loader(LatentPairs(folder), Layout(micro_batch=4), LoaderConfig(workers=0))
    places = set()
    for batch, _ in islice(loader, 6):
        places.add(batch.source.data_ptr())
        del batch

    assert len(places) == 1

"""Image batches: crops, flips and degradations are functions of (seed, key, visit)."""

from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from datasets.degradation.parameters import degradation_preset
from datasets.degradation.reference import degrade, draw_parameters
from datasets.reading.image_set import ImageSet
from datasets.reading.images import Crops, ImageBatch, OnlinePairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.memory import Memory
from datasets.reading.order import Layout, Picks
from infra.errors import UserError
from tests.conftest import picture
from tests.support.published_sets import write_images

SIDE = 48


def pixels(number: int, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """Return the picture of a number."""
    return np.array(picture(number, side, side))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Publish a set of twelve pictures, the key of each its number."""
    return write_images(tmp_path / "set", [(f"{n:02d}", pixels(n)) for n in range(12)])


def load(crops: Crops, indices: list[int], visit: int = 0, seed: int = 0) -> ImageBatch:
    """Load samples of the first set by number."""
    index = np.array(indices)
    drawn = Picks(np.zeros_like(index), index, np.full_like(index, visit), seed)
    return crops.load(drawn, Memory("reused"))


def as_model_range(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    """RGB [H, W, 3] => [3, H, W] in [-1, 1], computed in double precision."""
    return torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1) / 255 * 2 - 1)


def test_whole_images_are_the_pixels_of_the_shard(folder: Path) -> None:
    """Without crop and flip, a batch is what was written, in [-1, 1], ends included."""
    batch = load(Crops([ImageSet(folder)], crop=None, flip=False), list(range(12)))

    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (12, 3, SIDE, SIDE)
    for row in range(12):
        torch.testing.assert_close(
            batch.images[row].double(), as_model_range(pixels(row)), atol=1e-6, rtol=0
        )
    assert batch.keys == [f"{n:02d}" for n in range(12)]


def test_black_and_white_are_the_ends(tmp_path: Path) -> None:
    """0 is -1 and 255 is 1."""
    ends = np.zeros((8, 8, 3), np.uint8)
    ends[4:] = 255
    folder = write_images(tmp_path, [("a", ends)])
    images = load(Crops([ImageSet(folder)], crop=None, flip=False), [0]).images

    assert set(images.flatten().tolist()) == {-1.0, 1.0}


def test_a_crop_is_a_window_of_the_image_mirrored_half_of_the_time(folder: Path) -> None:
    """Over many visits: crops are windows, all windows are met, half are mirrored."""
    crops = Crops([ImageSet(folder)], crop=44)
    image = pixels(3)
    corners, mirrored = set(), 0
    for visit in range(400):
        cut = crops.cut(image, seed=0, key="03", visit=visit)
        places = [
            (y, x, flip)
            for flip, whole in ((False, image), (True, image[:, ::-1]))
            for y in range(5)
            for x in range(5)
            if (whole[y : y + 44, x : x + 44] == cut).all()
        ]
        assert len(places) == 1
        corners.add(places[0][:2])
        mirrored += places[0][2]

    assert len(corners) == 25
    assert 150 < mirrored < 250


def test_seed_key_and_visit_each_move_the_crop(folder: Path) -> None:
    """And nothing else does: the same three give the same crop at any place in any batch."""
    crops = Crops([ImageSet(folder)], crop=16)
    one = load(crops, [4], visit=2, seed=5).images[0]

    assert torch.equal(load(crops, [1, 2, 4], visit=2, seed=5).images[2], one)
    assert not torch.equal(load(crops, [4], visit=3, seed=5).images[0], one)
    assert not torch.equal(load(crops, [4], visit=2, seed=6).images[0], one)
    image = pixels(4)
    first, second = (crops.cut(image, seed=5, key=key, visit=2) for key in ("04", "05"))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.forks)])
def test_batches_do_not_depend_on_workers(folder: Path, processes: bool) -> None:
    """Read when asked for, ahead by threads, or by processes: the same tensors."""
    crops = Crops([ImageSet(folder)], crop=16)
    config = LoaderConfig(workers=2, processes=processes, start_method="fork", seed=3)
    alone = iter(Loader(crops, Layout(micro_batch=5), LoaderConfig(workers=0, seed=3)))
    helped = iter(Loader(crops, Layout(micro_batch=5), config))
    for _ in range(6):
        (expected, state), (batch, other_state) = next(alone), next(helped)

        assert torch.equal(batch.images, expected.images)
        assert (batch.keys, other_state) == (expected.keys, state)


def test_a_mixture_takes_each_set_by_its_weight(folder: Path, tmp_path: Path) -> None:
    """LSDIR once and FFHQ twice: an epoch of 12 + 2 x 3 samples, with all of both."""
    other = write_images(tmp_path / "other", [(f"f{n}", pixels(50 + n)) for n in range(3)])
    mixture = Crops([ImageSet(folder), ImageSet(other)], [1, 2], crop=16)
    loader = Loader(mixture, Layout(micro_batch=6), LoaderConfig(workers=0))
    batches = [batch for batch, _ in islice(loader, 3)]
    keys = [key for batch in batches for key in batch.keys]

    assert loader.order.epoch == 18
    assert sorted(keys) == sorted([f"{n:02d}" for n in range(12)] + 2 * ["f0", "f1", "f2"])


def test_online_pairs_are_the_degradation_of_this_epoch(folder: Path) -> None:
    """HQ and LQ are what `degrade` makes with draw = visit, gray and flip included."""
    config = degradation_preset("pmrf")
    pairs = OnlinePairs([ImageSet(folder)], config)
    index = np.array([2, 7])
    for visit in (0, 1):
        drawn = Picks(np.zeros_like(index), index, np.full_like(index, visit), 9)
        batch = pairs.load(drawn, Memory("reused"))
        for row, number in enumerate(index.tolist()):
            parameters = draw_parameters(config, seed=9, key=f"{number:02d}", draw=visit)
            degraded = degrade(pixels(number), parameters)
            for found, expected in ((batch.hq, degraded.hq), (batch.lq, degraded.lq)):
                expected_tensor = torch.from_numpy(expected.transpose(2, 0, 1) * 2 - 1)
                torch.testing.assert_close(found[row], expected_tensor, atol=1e-6, rtol=0)


def test_a_damaged_image_is_named(folder: Path) -> None:
    """A PNG whose bytes were overwritten: shard, key and reason, and another in its place."""
    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    start = data.index(b"IDAT")
    data[start : start + 600] = bytes(600)
    shard.write_bytes(data)
    batch = load(Crops([ImageSet(folder)], crop=16), [0, 1, 2])

    assert len(batch.skipped) == 1
    assert batch.skipped[0].startswith("train-000000.tar: 00.png: ")
    assert batch.keys == ["01", "01", "02"]


def test_an_index_of_another_set_is_noticed(folder: Path, tmp_path: Path) -> None:
    """Bytes that belong to another key are not taken for this one's."""
    other = write_images(tmp_path / "other", [(f"x{n}", pixels(n)) for n in range(12)])
    (other / "train-000000.tar").replace(folder / "train-000000.tar")
    with pytest.raises(UserError, match=r"train-000000\.tar: 0\d\.png is not where the index"):
        load(Crops([ImageSet(folder)], crop=16), [0])


def test_an_image_smaller_than_the_crop_is_refused(folder: Path) -> None:
    """The message has the key and both sizes."""
    with pytest.raises(UserError, match="03: an image of 48 x 48 pixels has no crop of 64"):
        load(Crops([ImageSet(folder)], crop=64), [3])


def test_whole_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    """They make no batch; the message names both."""
    folder = write_images(tmp_path, [("a", pixels(0)), ("b", pixels(1, 32))])
    with pytest.raises(UserError, match=r"b has shape \[32, 32, 3\], a has \[48, 48, 3\]"):
        load(Crops([ImageSet(folder)], crop=None), [0, 1])


def test_a_split_that_is_not_there_is_named(folder: Path) -> None:
    """Folder and split are in the message."""
    with pytest.raises(UserError, match="no image of split 'val'"):
        ImageSet(folder, split="val")

"""An image set gives the samples that were asked for, and notices what is not theirs."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from datasets import shards
from datasets.decoding import encode_png
from datasets.reading.image_set import ImageSet
from infra.config import canonical_json
from infra.errors import UserError
from tests.support.published_sets import finish, write_images
from tests.support.training_sets import write_image_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Publish a set of five training samples and two held out."""
    return write_image_set(tmp_path / "set", size=32, train=5, held_out=2)


def publish(folder: Path, width: int, height: int) -> Path:
    """Publish a set of one black image, described as curation does; returns its folder."""
    png = encode_png(np.zeros((height, width, 3), np.uint8))
    label = {"key": "black", "width": width, "height": height}
    label |= {"sha256": hashlib.sha256(png).hexdigest()}
    contents = {"png": png, "json": canonical_json(label)}
    shard = shards.write_shard(folder / "train-000000.tar", [("black", contents)])
    return finish(folder, [shard], "image set")


def test_a_split_is_a_part_of_the_set(folder: Path) -> None:
    """Both splits together are the set, in order; each has an identity of its own."""
    both, *splits = (ImageSet(folder, split=split) for split in (None, "train", "val"))

    assert [len(split) for split in splits] == [5, 2]
    assert both.rows.to_pylist() == [row for split in splits for row in split.rows.to_pylist()]
    assert {images.digest for images in splits} == {
        f"{both.digest}/train",
        f"{both.digest}/val",
    }


@pytest.mark.parametrize(("limit", "count"), [(None, 7), (3, 3), (9, 7)])
def test_a_limit_takes_the_first_samples(folder: Path, limit: int | None, count: int) -> None:
    """As many as were asked for, or all."""
    images = ImageSet(folder, limit=limit)

    assert images.rows.to_pylist() == ImageSet(folder).rows.to_pylist()[:count]


def test_spread_samples_are_evenly_spaced(folder: Path) -> None:
    """They begin with the first one and do not repeat; a small set gives all it has."""
    images = ImageSet(folder)
    keys = [images.key(index) for index in range(7)]

    assert [row["key"] for row in images.spread(3)] == [keys[0], keys[2], keys[4]]
    assert [row["key"] for row in images.spread(100)] == keys


def test_a_sample_is_its_image_and_its_json(tmp_path: Path) -> None:
    """They are read together and belong together."""
    images = ImageSet(publish(tmp_path, 32, 32))
    sample = images.sample(images.row(0))

    assert sample.key == images.key(0) == sample.label["key"]
    assert sample.image.shape == (images.size, images.size, 3)
    assert np.array_equal(sample.image, images.pixels(0))


def test_images_without_json_can_be_read_and_not_described(folder: Path) -> None:
    """Training needs pixels alone; what needs more says what is missing."""
    images = ImageSet(folder)

    assert images.pixels(0).shape == (32, 32, 3)
    with pytest.raises(UserError, match=r"index\.parquet lists no .*\.json"):
        images.label(images.row(0))


def test_a_shard_of_another_set_is_noticed(folder: Path, tmp_path: Path) -> None:
    """Even where it has the same length, the names in its headers differ."""
    black = np.zeros((32, 32, 3), np.uint8)
    mine, other = (write_images(tmp_path / name, [(name, black)]) for name in ("a", "b"))
    (other / "train-000000.tar").replace(mine / "train-000000.tar")
    images = ImageSet(mine)

    for read in (lambda: images.pixels(0), lambda: images.label(images.row(0))):
        with pytest.raises(UserError, match=r"train-000000\.tar: a\.\w+ is not where the index"):
            read()


def test_images_that_are_not_square_have_no_size(tmp_path: Path) -> None:
    """The message has both sides."""
    with pytest.raises(UserError, match="images of 48 x 32 pixels; squares are needed"):
        _ = ImageSet(publish(tmp_path, 48, 32)).size

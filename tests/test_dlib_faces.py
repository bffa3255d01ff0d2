"""The stand-ins by dlib: they follow what is done to a face, and say where they see none."""

import sys

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from models.checkpoint import CheckpointError
from models.faces.alignment import Pixels, square_alignment
from models.faces.alignment import crop as cut
from models.faces.identity import SAME_PERSON
from models.metrics.catalog import METRICS, Judge
from tests.support import astronaut

NAMES = ("identity_dlib", "landmarks_dlib")
SIDE = 192
UNIT = 512 / SIDE
"""Pixels at 512 to a pixel of these pictures."""


@pytest.fixture(scope="module")
def judges() -> dict[str, Judge]:
    """Load both by the catalogue."""
    return {name: METRICS[name].load() for name in NAMES}


def tensor(*pictures: Pixels) -> Tensor:
    """Return pictures as judges take them, uint8 [B, 3, H, W]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def face(*, turn: float = 0.0, right: float = 0.0, down: float = 0.0) -> Pixels:
    """Cut the astronaut's face out, turned by degrees, or moved by pixels of the picture."""
    seen = astronaut.view(SIDE, turn=turn)
    centre = seen.to_photograph(np.array([[(SIDE - 1) / 2 - right, (SIDE - 1) / 2 - down]]))[0]
    return cut(data.astronaut(), square_alignment(centre, seen.matrix[:, 0] * SIDE / 2, SIDE))


def blurred(sigma: float) -> Pixels:
    """Blur the face by so many pixels."""
    return np.asarray(cv2.GaussianBlur(face(), (0, 0), sigma), dtype=np.uint8)


def values(judge: Judge, pictures: list[Pixels]) -> list[float]:
    """Compare pictures with the face."""
    found = judge.compute(tensor(*pictures), tensor(*[face()] * len(pictures)))
    assert found.dtype == torch.float64
    return list(found.tolist())


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_at_no_distance_from_itself(name: str, judges: dict[str, Judge]) -> None:
    """It is 0, and what follows from a blur rises with it."""
    ladder = [face(), *(blurred(sigma) for sigma in (2, 6))]

    found = values(judges[name], ladder)

    assert found[0] == 0
    assert found == sorted(found)
    assert found[1] > 0


def test_another_crop_is_the_same_person_whose_landmarks_move(judges: dict[str, Judge]) -> None:
    """The landmarks move by as much as the crop, told at 512 pixels; the person stays the same."""
    steps = (6, 24)
    moved = [face(right=step) for step in steps]

    apart = values(judges["landmarks_dlib"], moved)
    persons = values(judges["identity_dlib"], moved)

    assert apart == pytest.approx([step * UNIT for step in steps], abs=0.02 * 512)
    assert apart == sorted(apart)
    assert max(persons) < SAME_PERSON / 2


def test_a_turned_face_is_the_same_person_whose_landmarks_move(judges: dict[str, Judge]) -> None:
    """The landmarks move further the more the face is turned; the person stays the same."""
    turned = [face(turn=turn) for turn in (5, 20)]

    apart = values(judges["landmarks_dlib"], turned)
    persons = values(judges["identity_dlib"], turned)

    assert apart == sorted(apart)
    assert apart[0] > 0
    assert max(persons) < SAME_PERSON / 2


@pytest.mark.parametrize("name", NAMES)
def test_both_directions_are_one(name: str, judges: dict[str, Judge]) -> None:
    """Neither which of the two is the reference matters, nor what else is in the batch."""
    one, other = tensor(face()), tensor(blurred(3))
    there, back = judges[name].compute(torch.cat([one, other]), torch.cat([other, one])).tolist()

    assert there == pytest.approx(back)
    assert judges[name].compute(one, other).item() == pytest.approx(there)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_face_there_is_no_value(name: str, judges: dict[str, Judge]) -> None:
    """In the picture, in the reference, or in both; the other pairs of the batch have theirs."""
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    images, references = (face(), grey, face(), grey), (face(), face(), grey, grey)

    found = judges[name].compute(tensor(*images), tensor(*references))

    assert found.isnan().tolist() == [False, True, True, True]


def test_distances_are_told_at_512_pixels_whatever_the_size(judges: dict[str, Judge]) -> None:
    """The same faces in pictures of twice the side have about the same distance."""
    pair = face(), face(right=12)
    large = [cv2.resize(some, (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_CUBIC) for some in pair]

    small, doubled = (
        judges["landmarks_dlib"].compute(tensor(one), tensor(other)).item()
        for one, other in (pair, large)
    )
    assert doubled == pytest.approx(small, abs=0.01 * 512)


@pytest.mark.parametrize("name", NAMES)
def test_unequal_or_float_pictures_are_not_compared(name: str, judges: dict[str, Judge]) -> None:
    """A batch of one does not stand for two, nor a float for a level."""
    x = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)

    with pytest.raises(ValueError, match="one shape"):
        judges[name].compute(x, x[:1])
    with pytest.raises(TypeError, match="give uint8"):
        judges[name].compute(x.float(), x)


def test_digests_tell_the_two_apart(judges: dict[str, Judge]) -> None:
    """Each names the weights and the settings that decide its values."""
    digests = [judges[name].digest for name in NAMES]

    assert [len(digest) for digest in digests] == [64, 64]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("name", NAMES)
def test_without_dlib_the_remedy_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other metric takes its place."""
    monkeypatch.setitem(sys.modules, "dlib", None)

    with pytest.raises(CheckpointError, match=r"pip install -e '\.\[faces\]'"):
        METRICS[name].load()

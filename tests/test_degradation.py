"""The degradation: the references' result, draws by key, replay from JSON."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from datasets.degradation.parameters import PRESETS, DegradationParameters, downscaled_size
from datasets.degradation.reference import Degraded, degrade, draw_parameters
from datasets.degradation.steps import A, Image, seeded, steps
from infra.config import canonical_json, to_dict
from tests.test_degradation_parameters import draws, keys, parameters, presets, seeds, through_json
from tests.test_degradation_steps import by_inverse

ROOT = Path(__file__).resolve().parents[1]
ALL = replace(
    PRESETS["gfpgan-v1"],
    shift_probability=1.0,
    jitter_probability=1.0,
    gray_probability=1.0,
    gray_target=True,
)
"""Every step applies in every draw."""


def photograph(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Cut the middle of a portrait."""
    top, left = (512 - height) // 2, (512 - width) // 2
    return np.ascontiguousarray(astronaut()[top : top + height, left : left + width])


def same(one: Degraded, other: Degraded) -> bool:
    """Compare two results bit for bit."""
    return np.array_equal(one.lq, other.lq) and np.array_equal(one.hq, other.hq)


def by_hand(hq: npt.NDArray[np.uint8], p: DegradationParameters) -> tuple[Image, Image]:
    """Degrade as the references' listings do, one step a line, with an inverted covariance.

    Theirs are in BGR throughout. Here that holds for the JPEG, where it matters; elsewhere it moves
    the last bit of some floats, as OpenCV's vector code rounds unlike its scalar code.
    """
    target = hq.astype(np.float32) / 255
    if p.flip:
        target = np.ascontiguousarray(target[:, ::-1])
    height, width = target.shape[:2]
    small = (int(width // p.downscale), int(height // p.downscale))
    lq = cv2.filter2D(target, -1, by_inverse(p.blur_sigma, p.blur_angle, p.kernel_size))
    lq = cv2.resize(lq, small, interpolation=cv2.INTER_LINEAR)
    generator = np.random.Generator(np.random.Philox(p.noise_seed))
    field = generator.standard_normal(lq.shape, dtype=np.float32)
    lq = np.clip(lq + field * np.float32(p.noise_sigma / 255), 0, 1)
    bgr = np.round(lq[:, :, ::-1] * np.float32(255)).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, p.jpeg_quality])
    lq = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1].astype(np.float32) / 255
    lq = cv2.resize(lq, (width, height), interpolation=cv2.INTER_LINEAR)
    if p.shift is not None:
        lq = np.clip(lq + np.float32(p.shift) / np.float32(255), 0, 1)
    if p.gray:
        lq = np.repeat(cv2.cvtColor(lq, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    if p.gray_target:
        target = np.repeat(cv2.cvtColor(target, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    lq = np.clip(np.round(lq * np.float32(255)), 0, 255) / np.float32(255)
    return lq, target


@pytest.mark.parametrize("preset", ["pmrf", "difface-test"])
@pytest.mark.parametrize("draw", range(6))
def test_every_bit_is_that_of_the_references_listing(preset: str, draw: int) -> None:
    """Step by step in NumPy and OpenCV, the same parameters give the same pair."""
    hq = photograph(160, 128)
    record = draw_parameters(PRESETS[preset], seed=3, key="a", draw=draw)
    if draw == 5:
        record = replace(record, gray=True, gray_target=True, shift=(-9.5, 20.0, 3.0))

    lq, target = by_hand(hq, record)
    degraded = degrade(hq, record)

    assert np.array_equal(degraded.lq, lq)
    assert np.array_equal(degraded.hq, target)


def test_height_and_width_stay_apart() -> None:
    """Images need not be square: LQ comes back at the size of HQ."""
    assert downscaled_size(100, 60, 8) == (12, 7)
    assert degrade(photograph(100, 60), parameters(downscale=8)).lq.shape == (100, 60, 3)


@given(presets, seeds, keys, draws)
@settings(max_examples=25)
def test_a_draw_depends_on_nothing_drawn_before(
    preset: str, seed: int, key: str, draw: int
) -> None:
    """(configuration, seed, key, draw) is all: other draws and global generators change nothing."""
    first = draw_parameters(PRESETS[preset], seed=seed, key=key, draw=draw)
    np.random.seed(seed)  # noqa: NPY002  (the global generator is the point)
    cv2.setRNGSeed(seed)
    draw_parameters(PRESETS["pmrf"], seed=seed, key=key + "x", draw=draw + 1)
    image = photograph(41, 47)

    again = draw_parameters(PRESETS[preset], seed=seed, key=key, draw=draw)

    assert again == first
    assert same(degrade(image, first), degrade(image, again))


@given(presets, seeds, st.integers(41, 64), st.integers(41, 64))
@settings(max_examples=25)
def test_a_record_gives_the_same_bits_again(
    preset: str, seed: int, height: int, width: int
) -> None:
    """Through JSON and back, the record is equal and so are LQ and HQ."""
    record = draw_parameters(PRESETS[preset], seed=seed, key="a")
    image = photograph(height, width)

    assert through_json(record) == record
    assert same(degrade(image, through_json(record)), degrade(image, record))


def test_a_record_with_every_step_gives_the_same_bits_again() -> None:
    """Shift, gray and colour jitter are recorded too."""
    record = draw_parameters(ALL, seed=0, key="a")
    image = photograph(64, 48)

    assert record.color_jitter is not None
    assert record.shift is not None
    assert record.gray_target
    assert through_json(record) == record
    assert same(degrade(image, through_json(record)), degrade(image, record))


ELSEWHERE = """
import hashlib, json, sys
from skimage.data import astronaut
from datasets.degradation.reference import degrade, draw_parameters
from datasets.degradation.parameters import PRESETS, DegradationParameters
from infra.config import from_dict, to_dict
record = from_dict(DegradationParameters, json.loads(sys.argv[1]))
assert to_dict(draw_parameters(PRESETS["pmrf"], seed=4, key="k", draw=2)) == to_dict(record)
print(hashlib.sha256(degrade(astronaut(), record).lq.tobytes()).hexdigest())
"""


def test_another_process_draws_and_replays_the_same() -> None:
    """At full size, with other string hashing, a record means the same bits elsewhere."""
    record = draw_parameters(PRESETS["pmrf"], seed=4, key="k", draw=2)
    mine = hashlib.sha256(degrade(astronaut(), record).lq.tobytes()).hexdigest()

    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, canonical_json(to_dict(record)).decode()],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.strip() == mine


@pytest.mark.parametrize("draw", range(4))
def test_albumentations_own_record_agrees(draw: int) -> None:
    """The same steps run live in a Compose draw and apply what `draw_parameters` recorded."""
    image = photograph(64, 64).astype(np.float32) / np.float32(255)
    ordered = steps(ALL)
    composition = A.Compose(list(ordered.values()), save_applied_params=True)
    seeded(ordered, seed=9, key="a", draw=draw)  # after Compose, which seeds anew

    live = composition(image=image, hq=image)
    record = draw_parameters(ALL, seed=9, key="a", draw=draw)

    applied = dict(live["applied_transforms"])
    assert same(Degraded(live["image"], live["hq"], record), degrade(image, record))
    assert applied["GaussianBlur"]["blur_sigma"] == record.blur_sigma
    assert applied["Downscale"]["downscale"] == record.downscale
    assert applied["GaussianNoise"]["noise_seed"] == record.noise_seed
    assert applied["Jpeg"]["quality"] == record.jpeg_quality
    assert applied["ChannelShift"]["shift"] == record.shift


def test_gray_changes_hq_in_pmrf_only() -> None:
    """PMRF's gray draws change the target of training, GFPGAN's do not."""
    image = photograph(48, 48)
    results: Mapping[str, Degraded] = {
        name: degrade(
            image,
            draw_parameters(
                replace(
                    PRESETS[name],
                    gray_probability=1.0,
                    flip_probability=0.0,
                    jitter_probability=0.0,
                ),
                seed=0,
                key="a",
            ),
        )
        for name in ("pmrf", "gfpgan-v1")
    }
    plain = image.astype(np.float32) / np.float32(255)

    for result in results.values():
        assert np.array_equal(result.lq[..., 0], result.lq[..., 2])
    assert np.array_equal(results["pmrf"].hq[..., 0], results["pmrf"].hq[..., 2])
    assert results["pmrf"].parameters.gray_target
    assert np.array_equal(results["gfpgan-v1"].hq, plain)
    assert not results["gfpgan-v1"].parameters.gray_target


def test_flip_turns_both_images() -> None:
    """The mirrored HQ comes back, and LQ is made from it."""
    image = photograph(64, 48)
    plain, flipped = (degrade(image, parameters(flip=flip)) for flip in (False, True))
    mirrored = degrade(np.ascontiguousarray(image[:, ::-1]), parameters())

    assert np.array_equal(flipped.hq, plain.hq[:, ::-1])
    assert np.array_equal(flipped.lq, mirrored.lq)


@given(presets, seeds)
@settings(max_examples=20)
def test_lq_is_made_of_8_bit_levels(preset: str, seed: int) -> None:
    """LQ is float32 of the size of HQ, and every value is a level over 255."""
    image = photograph(50, 60)
    lq = degrade(image, draw_parameters(PRESETS[preset], seed=seed, key="a")).lq

    assert lq.dtype == np.float32
    assert lq.shape == image.shape
    assert np.array_equal(np.rint(lq * 255).astype(np.uint8) / np.float32(255), lq)


def test_uint8_and_float_are_the_same_image() -> None:
    """Levels over 255 and levels give one result; the input is left as it was."""
    image = photograph(64, 64)
    kept = image.copy()
    record = draw_parameters(ALL, seed=0, key="a")

    assert same(degrade(image, record), degrade(image.astype(np.float32) / np.float32(255), record))
    assert np.array_equal(image, kept)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((64, 64), np.uint8), r"\[64, 64\], expected \[H, W, 3\]"),
        (np.zeros((64, 64, 4), np.uint8), r"\[64, 64, 4\].*convert it to RGB"),
        (np.full((64, 64, 3), 1.5, np.float32), r"from 1.5 to 1.5.*clip it"),
        (np.full((64, 64, 3), -1, np.float32), r"map \[-1, 1\]"),
        (np.full((64, 64, 3), np.nan, np.float32), r"nan"),
        (np.zeros((20, 64, 3), np.uint8), r"20 x 64.*at least 21"),
    ],
)
def test_a_wrong_image_is_refused(image: npt.NDArray[Any], says: str) -> None:
    """Shape, range, NaN and size: what came, what is expected, what to do."""
    with pytest.raises(ValueError, match=says):
        degrade(image, parameters())


def test_a_wrong_dtype_is_refused() -> None:
    """float64 would silently double the memory and change the bits."""
    with pytest.raises(TypeError, match=r"float64, expected uint8, or float32"):
        degrade(np.zeros((64, 64, 3)), parameters())


def test_an_image_that_would_vanish_is_refused() -> None:
    """A side shorter than the downscale has no pixel left."""
    with pytest.raises(ValueError, match=r"30 x 64 pixels cannot be downscaled by 31.5.*least 32"):
        degrade(photograph(30, 64), parameters(downscale=31.5))

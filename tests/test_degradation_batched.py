"""The batched degradation: how near to the reference path, and what may not differ at all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.signal import correlate

from datasets.degradation.batched import blur_and_downscale, degrade_batch
from datasets.degradation.parameters import PRESETS, DegradationParameters
from datasets.degradation.reference import degrade, draw_parameters, recorded, to_float
from datasets.degradation.steps import Image, gaussian_kernel, replay
from tests.test_degradation import photograph
from tests.test_degradation_parameters import parameters

LEVELS_BEFORE_NOISE = 0.001
"""The bound stated in the module, in levels of 255."""


def records(count: int) -> list[DegradationParameters]:
    """Draw PMRF's parameters, the first four made flipped, isotropic, gray and enlarging."""
    drawn = [draw_parameters(PRESETS["pmrf"], seed=2, key=str(key)) for key in range(count)]
    drawn[0] = replace(drawn[0], flip=True)
    drawn[1] = replace(drawn[1], blur_sigma=(6.0, 6.0), blur_angle=0.0, downscale=9.7)
    drawn[2] = replace(drawn[2], gray=True, gray_target=True)
    drawn[3] = replace(drawn[3], downscale=0.8)
    return drawn


def by_reference(image: Image, record: DegradationParameters) -> Image:
    """Blur and downscale with OpenCV."""
    both = {k: v for k, v in recorded(record, image.shape).items() if k in ("blur", "downscale")}
    result: Image = replay(both, gray_target=False)(image=image, hq=image)["image"]
    return result


def alone(image: Image, record: DegradationParameters) -> Image:
    """Blur and downscale one image by its spectrum."""
    return blur_and_downscale([image], [record], "cpu")[0]


@pytest.mark.parametrize("shape", [(64, 64), (65, 48), (21, 30)])
def test_blur_is_the_sum_by_definition(shape: tuple[int, int]) -> None:
    """Spectra give the 41 x 41 sum over mirrored pixels, a kernel of its own for each image."""
    images = np.random.default_rng(0).random((2, *shape, 3), dtype=np.float32)
    drawn = [
        parameters(blur_sigma=(9.0, 2.0), blur_angle=0.7, downscale=1),
        parameters(blur_sigma=(1.0, 1.0), blur_angle=0.0, downscale=1),
    ]
    mirrored = np.pad(images.astype(np.float64), ((0, 0), (20, 20), (20, 20), (0, 0)), "reflect")

    blurred = blur_and_downscale(list(images), drawn, "cpu")

    for image, record, actual in zip(mirrored, drawn, blurred, strict=True):
        kernel = gaussian_kernel(record.blur_sigma, record.blur_angle, 41)[:, :, None]
        expected = correlate(image, kernel.astype(np.float64), mode="valid", method="direct")
        assert abs(actual - expected).max() * 255 < LEVELS_BEFORE_NOISE


@pytest.mark.parametrize("downscale", [0.8, 1.0, 2.0, 3.3, 8.0, 21.5])
def test_what_enters_the_noise_differs_by_less_than_a_thousandth(downscale: float) -> None:
    """Blurred and downscaled images agree with OpenCV's within the bound, at unequal sides."""
    image = to_float(photograph(200, 144))
    for sigma in ((0.1, 0.1), (1.3, 4.0), (15.0, 0.1), (15.0, 15.0)):
        record = parameters(blur_sigma=sigma, blur_angle=2.0, downscale=downscale)
        reference = by_reference(image, record)

        actual = alone(image, record)

        assert actual.shape == reference.shape
        assert actual.dtype == np.float32
        assert abs(actual - reference).max() * 255 < LEVELS_BEFORE_NOISE


def deviations(
    images: Sequence[npt.NDArray[Any]], drawn: Sequence[DegradationParameters], device: str
) -> npt.NDArray[np.float32]:
    """Degrade both ways; return the absolute differences of LQ in levels."""
    batched = degrade_batch(images, drawn, device)
    single = [degrade(image, record) for image, record in zip(images, drawn, strict=True)]
    assert all(np.array_equal(a.hq, b.hq) for a, b in zip(batched, single, strict=True))
    assert [result.parameters for result in batched] == list(drawn)
    return np.abs([a.lq - b.lq for a, b in zip(batched, single, strict=True)]) * 255


def test_results_are_the_references_but_for_rounding() -> None:
    """HQ is the same; LQ differs only where a rounding tips: rarely, and by a few levels."""
    images = [photograph(192, 192)] * 32
    levels = deviations(images, records(32), "cpu")

    assert (levels.max(axis=(1, 2, 3)) == 0).mean() > 0.7
    assert levels.mean() < 0.01
    assert levels.max() < 16
    assert np.allclose(levels, np.rint(levels), atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_gives_the_references_but_for_rounding() -> None:
    """On CUDA the whole batch is blurred at once, within the same bounds."""
    levels = deviations([photograph(192, 192)] * 32, records(32), "cuda")

    assert levels.mean() < 0.01
    assert levels.max() < 16


def test_a_batch_is_its_images() -> None:
    """Blurred together, as on a GPU, images do not mix: each is as it is alone."""
    images = [to_float(photograph(96, 64)), to_float(photograph(512, 512)[:96, :64])] * 2
    drawn = records(4)

    together = blur_and_downscale(images, drawn, "cpu")

    for image, record, small in zip(images, drawn, together, strict=True):
        assert abs(small - alone(image, record)).max() * 255 < 1e-3


def test_autocast_does_not_reach_the_blur() -> None:
    """Called where a model runs in bfloat16, the degradation stays in float32."""
    images, drawn = [photograph(64, 64)] * 4, records(4)
    plain = degrade_batch(images, drawn)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = degrade_batch(images, drawn)

    assert all(np.array_equal(a.lq, b.lq) for a, b in zip(plain, inside, strict=True))


def test_jitters_reach_a_batch() -> None:
    """GFPGAN's shift and colour jitter follow as in the reference path."""
    config = replace(PRESETS["gfpgan-v1"], shift_probability=1.0, jitter_probability=1.0)
    drawn = [draw_parameters(config, seed=0, key=str(key)) for key in range(6)]

    assert np.median(deviations([photograph(96, 96)] * 6, drawn, "cpu")) == 0


def test_unequal_numbers_are_refused() -> None:
    """Each image needs its parameters."""
    with pytest.raises(ValueError, match="2 images but 1 parameters"):
        degrade_batch([photograph(64, 64)] * 2, [parameters()])


def test_unequal_sizes_are_refused() -> None:
    """A batch has one size; the message lists those that came."""
    with pytest.raises(ValueError, match=r"\[\(64, 48\), \(64, 64\)\]: batch images of one size"):
        degrade_batch([photograph(64, 64), photograph(64, 48)], [parameters()] * 2)


def test_unequal_kernels_are_refused() -> None:
    """A batch has one kernel size."""
    with pytest.raises(ValueError, match=r"\[21, 41\]: batch draws of one configuration"):
        degrade_batch([photograph(64, 64)] * 2, [parameters(), parameters(kernel_size=21)])


def test_a_wrong_image_is_refused_as_ever() -> None:
    """The checks are those of `degrade`."""
    with pytest.raises(ValueError, match=r"at least 21"):
        degrade_batch([np.zeros((20, 20, 3), np.uint8)], [parameters()])

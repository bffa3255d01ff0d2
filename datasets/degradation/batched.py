"""The degradation of a batch: blur and downscale in PyTorch on any device, the rest per image.

At 512 pixels the 41 x 41 blur is nearly all the work: 41^2 * 3 * 512^2 * 2 = 2.6 GFLOP by its
definition. Here it is a product of spectra at 576 x 576. The downscale reads only four pixels for
each that it makes, so only the rows that it reads are transformed back along x. Three channels and
a kernel forward at 2.5 N log2 N operations, half as much back along y, and those rows make 0.08
GFLOP. On a GPU the time is limited by memory, not by arithmetic.

The result is not that of `reference` to the bit: before the noise is added, the two differ by less
than 0.001 levels of 255. JPEG and rounding remove most of that, but turn it into whole levels where
a value is near the border between two: of 256 draws at 512 pixels 96 % gave the same LQ to the bit,
and the largest difference was 5 levels. A stored pair is replayed exactly by the function that made
it; from the noise on, both run the same code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from datasets.degradation.parameters import DegradationParameters, downscaled_size
from datasets.degradation.reference import Degraded, check_size, recorded, to_float
from datasets.degradation.steps import Image, gaussian_kernel, replay


def degrade_batch(
    hq: Sequence[npt.NDArray[Any]],
    parameters: Sequence[DegradationParameters],
    device: torch.device | str = "cpu",
) -> list[Degraded]:
    """Degrade images of one size, each in the way that its parameters record.

    Args:
        hq: each RGB [H, W, 3], uint8 or float32 in [0, 1], as `reference.degrade` takes it.
        parameters: one for each image.
        device: where to blur. On "cpu" images are blurred one by one, since one fits the cache.

    Raises:
        ValueError: unequal numbers or sizes, or what `reference.degrade` refuses.
    """
    if len(hq) != len(parameters):
        raise ValueError(f"{len(hq)} images but {len(parameters)} parameters: give one for each")
    images = [
        np.ascontiguousarray(image[:, ::-1]) if record.flip else image
        for image, record in zip(map(to_float, hq), parameters, strict=True)
    ]
    if len({image.shape for image in images}) > 1:
        raise ValueError(
            f"images of several sizes, {sorted({image.shape[:2] for image in images})}: "
            "batch images of one size"
        )
    if len({record.kernel_size for record in parameters}) > 1:
        raise ValueError(
            f"kernels of several sizes, {sorted({record.kernel_size for record in parameters})}: "
            "batch draws of one configuration"
        )
    for image, record in zip(images, parameters, strict=True):
        check_size(image.shape[0], image.shape[1], record)
    step = 1 if torch.device(device).type == "cpu" else max(1, len(images))
    degraded: list[Degraded] = []
    for start in range(0, len(images), step):
        some, records = images[start : start + step], parameters[start : start + step]
        small = blur_and_downscale(some, records, device)
        degraded += map(_finish, some, small, records)
    return degraded


@torch.no_grad()
def blur_and_downscale(
    images: Sequence[Image],
    parameters: Sequence[DegradationParameters],
    device: torch.device | str,
) -> list[Image]:
    """Blur every image with its own kernel and downscale it by its own factor.

    Args:
        images: each float32 [H, W, 3], all of one size.
        parameters: one for each image, all with one kernel size.
        device: where to compute.

    Returns:
        each float32 [int(H // s), int(W // s), 3].
    """
    height, width = images[0].shape[:2]
    kernels = [
        gaussian_kernel(record.blur_sigma, record.blur_angle, record.kernel_size)
        for record in parameters
    ]
    radius = parameters[0].kernel_size // 2
    tall, wide = (next_fast_len(side + 2 * radius, real=True) for side in (height, width))
    batch = torch.stack([torch.from_numpy(image).to(device).permute(2, 0, 1) for image in images])
    # mirrored as far as the transforms reach, which otherwise would copy in order to append zeros
    right, below = (min(n - m - radius, m - 1) for n, m in ((wide, width), (tall, height)))
    padded = F.pad(batch, (radius, right, radius, below), mode="reflect")
    spectra = _forward(padded, tall, wide)  # [B, 3, tall, wide // 2 + 1]
    # With conj this is a correlation: results start at pixel 0, and what wraps around is not read.
    spectra *= _forward(torch.from_numpy(np.stack(kernels)).to(device), tall, wide).conj()[:, None]
    small = []
    for columns, record in zip(torch.fft.ifft(spectra, dim=-2), parameters, strict=True):
        new_height, new_width = downscaled_size(height, width, record.downscale)
        rows = torch.fft.irfft(_read(columns, height, new_height), wide)  # [3, h, wide]
        shrunk = _read(rows.mT, width, new_width)  # [3, w, h]
        small.append(np.ascontiguousarray(shrunk.permute(2, 1, 0).cpu().numpy()))
    return small


def _forward(images: Tensor, tall: int, wide: int) -> Tensor:
    """Transform the last two axes, with zeros added below and to the right."""
    spectra: Tensor = torch.fft.fft(torch.fft.rfft(images, wide), tall, dim=-2)
    return spectra


def _read(lines: Tensor, size: int, new_size: int) -> Tensor:
    """Read ``new_size`` rows between the first ``size``, as OpenCV's INTER_LINEAR does."""
    at = torch.arange(new_size, dtype=torch.float64, device=lines.device)
    at = (at + 0.5) * (size / new_size) - 0.5
    low = at.floor()
    first, second = (lines[..., row.clamp(0, size - 1).long(), :] for row in (low, low + 1))
    return first + (at - low).float()[:, None] * (second - first)


def _finish(hq: Image, small: Image, record: DegradationParameters) -> Degraded:
    """Apply the steps after the downscale, as `reference` does."""
    steps = recorded(record, hq.shape)
    for done in ("flip", "blur", "downscale"):
        steps.pop(done, None)
    result = replay(steps, gray_target=record.gray_target)(image=small, hq=hq)
    return Degraded(lq=result["image"], hq=result["hq"], parameters=record)

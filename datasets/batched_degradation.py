"""The degradation of a batch: blur and downscale in PyTorch on any device, the rest per image.

Of a draw at 512 pixels the 41 x 41 blur is nearly all the work: 41^2 * 3 * 512^2 * 2 = 2.6 GFLOP by
its definition. Two cheaper ways to the same numbers:

- `blur`: a product of spectra. Three images and a kernel forward, three images back, at 576 x 576
  and 2.5 N log2 N each: 0.11 GFLOP. On a GPU this is bound by memory, not by arithmetic.
- an isotropic kernel is separable, and so is the bilinear downscale that follows, which reads only
  four pixels for each one it makes: both together are one matrix per axis. 0.10 GFLOP at s = 8, and
  as matrix products, which run near a core's peak. Used on the CPU from s = 2 on.

Neither is the reference path bit for bit: what enters the noise differs by less than 0.01 levels of
255. JPEG and rounding turn that into whole levels where a value lies on an edge: some pixels of
some images differ, as two builds of OpenCV would. To replay a stored pair exactly, use the path
that made it; everything from the noise on is the same code in both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from datasets.degradation import Degraded, check_size, recorded, to_float
from datasets.degradation_parameters import DegradationParameters, downscaled_size
from datasets.degradation_steps import Image, gaussian_kernel, replay

SEPARABLE_FROM = 2.0
"""From this downscale on, two dense matrix products beat the spectra on a CPU core."""


def degrade_batch(
    hq: Sequence[npt.NDArray[Any]],
    parameters: Sequence[DegradationParameters],
    device: torch.device | str = "cpu",
) -> list[Degraded]:
    """Degrade images of one size, each in the way that its parameters record.

    Args:
        hq: each RGB [H, W, 3], uint8 or float32 in [0, 1], as `degradation.degrade` takes it.
        parameters: one for each image.
        device: where to blur. On "cpu" images pass one by one, since one fits the cache.

    Raises:
        ValueError: unequal numbers or sizes, or what `degradation.degrade` refuses.
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
    for image, record in zip(images, parameters, strict=True):
        check_size(image.shape[0], image.shape[1], record)
    small = _blur_and_downscale(images, parameters, torch.device(device))
    return [
        _finish(image, shrunk, record)
        for image, shrunk, record in zip(images, small, parameters, strict=True)
    ]


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Correlate every image with its own kernel, borders mirrored without the edge pixel.

    Args:
        images: float32 [B, C, H, W], H and W above half the kernel.
        kernels: float32 [B, k, k], k odd.

    Returns:
        float32 [B, C, H, W].
    """
    height, width = images.shape[-2:]
    radius = kernels.shape[-1] // 2
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    size = [next_fast_len(side + 2 * radius, real=True) for side in (height, width)]
    spectrum = torch.fft.rfft2(padded, s=size)
    spectrum *= torch.fft.rfft2(kernels, s=size).conj()[:, None]  # conj: correlation
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)
    return blurred[..., :height, :width]  # what wrapped around lies beyond


def _blur_and_downscale(
    images: Sequence[Image], parameters: Sequence[DegradationParameters], device: torch.device
) -> list[Image]:
    """Return each image blurred and downscaled: [h, w, 3], the sizes as the parameters say."""
    if device.type != "cpu":
        return _by_spectrum(images, parameters, device)
    return [
        _by_matrices(image, record)
        if record.isotropic and record.downscale >= SEPARABLE_FROM
        else _by_spectrum([image], [record], device)[0]
        for image, record in zip(images, parameters, strict=True)
    ]


@torch.no_grad()
def _by_spectrum(
    images: Sequence[Image], parameters: Sequence[DegradationParameters], device: torch.device
) -> list[Image]:
    """Blur all images at once, then downscale each."""
    kernels = [
        gaussian_kernel(record.blur_sigma, record.blur_angle, record.kernel_size)
        for record in parameters
    ]
    batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).contiguous()
    blurred = blur(batch, torch.from_numpy(np.stack(kernels)).to(device))
    small = []
    for image, record in zip(blurred, parameters, strict=True):
        size = downscaled_size(image.shape[1], image.shape[2], record.downscale)
        shrunk = F.interpolate(image[None], size, mode="bilinear", align_corners=False)
        small.append(np.ascontiguousarray(shrunk[0].permute(1, 2, 0).cpu().numpy()))
    return small


def _by_matrices(image: Image, record: DegradationParameters) -> Image:
    """Blur with a separable kernel and downscale: one matrix product per axis."""
    height, width = image.shape[:2]
    new_height, new_width = downscaled_size(height, width, record.downscale)
    taps = gaussian_kernel(record.blur_sigma, 0.0, record.kernel_size).sum(axis=0)
    rows = _axis_matrix(height, new_height, taps) @ image.reshape(height, width * 3)
    columns = rows.reshape(new_height, width, 3).transpose(0, 2, 1)  # [h, 3, W]
    small = np.matmul(columns, _axis_matrix(width, new_width, taps).T, dtype=np.float32)
    return np.ascontiguousarray(small.transpose(0, 2, 1))  # [h, w, 3]


def _axis_matrix(
    size: int, new_size: int, taps: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Write "blur, then read between two pixels" along one axis as a matrix [new_size, size]."""
    at = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    low = np.floor(at)
    matrix = np.zeros((new_size, size), np.float32)
    offsets = np.arange(len(taps)) - len(taps) // 2
    for pixel, weight in ((low, 1 - (at - low)), (low + 1, at - low)):
        source = pixel.clip(0, size - 1).astype(int)[:, None] + offsets
        source = size - 1 - abs(size - 1 - abs(source))  # mirrored without the edge pixel
        np.add.at(matrix, (np.arange(new_size)[:, None], source), weight[:, None] * taps)
    return matrix


def _finish(hq: Image, small: Image, record: DegradationParameters) -> Degraded:
    """Apply what follows the downscale, by the reference path."""
    steps = recorded(record, hq.shape)
    for done in ("flip", "blur", "downscale"):
        steps.pop(done, None)
    result = replay(steps, gray_target=record.gray_target)(image=small, hq=hq)
    return Degraded(lq=result["image"], hq=result["hq"], parameters=record)

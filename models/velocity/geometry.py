"""What a map's size alone decides for attention: the rotary angles, and the windows of its queries.

It is computed once for each size, type and device and kept, as many bytes as `KEPT_BYTES`, for the
life of the process: nothing kept is ever dropped, for a captured CUDA graph reads it where it lies,
long after the call that it was captured from. A size that comes after the limit is computed at
every call, on the device.

Shapes: H x W map, e head dimension.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from models.velocity.neighborhood import Windows, cut_windows

KEPT_BYTES = 256 << 20  # HDiT at 512 px takes 9 MB in bfloat16 and 18 MB in float32


class Geometry(NamedTuple):
    """Of the maps of one level."""

    cos: Tensor
    """Cosines of the angles by which queries and keys turn, [heads, H, W, e / 4]."""
    sin: Tensor
    """Sines of these angles."""
    windows: Windows | None
    """Where a query sees the window around it; None where it sees the whole map."""


class _Size(NamedTuple):
    """What a geometry is computed from."""

    heads: int
    head_dim: int
    window: int | None
    height: int
    width: int
    dtype: torch.dtype


_kept: dict[tuple[_Size, torch.device], Geometry] = {}


def map_geometry(
    heads: int, head_dim: int, window: int | None, height: int, width: int, like: Tensor
) -> Geometry:
    """Return the geometry of maps of one size, which is kept.

    What is kept is made on the CPU and copied, for that copy ends before another stream can read
    it. A compiler that follows this call finds the computation, and not what is kept: it makes the
    geometry part of its graph.

    Args:
        heads: of the attention.
        head_dim: channels e of a head, a multiple of 8.
        window: side of the neighbourhood; None for the whole map.
        height: H.
        width: W.
        like: a tensor of the device and the type of the queries.

    Raises:
        ValueError: ``window`` is even or not positive.
    """
    size = _Size(heads, head_dim, window, height, width, like.dtype)
    if torch.compiler.is_compiling():
        return _compute(size, like.device)
    is_plain = type(like) is Tensor  # a fake tensor has no place beside real ones
    kept = _kept.get((size, like.device)) if is_plain else None
    if kept is not None:
        return kept
    if sum(_nbytes(geometry) for geometry in list(_kept.values())) >= KEPT_BYTES:
        return _compute(size, like.device)
    # Tensors that inference mode makes could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        made = _move(_compute(size, torch.device("cpu")), like.device)
    if is_plain and type(made.cos) is Tensor:
        _kept[size, like.device] = made
    return made


def rotary_frequencies(heads: int, head_dim: int, device: torch.device | None = None) -> Tensor:
    """From pi to 10 pi, evenly in their logarithm, dealt out to the heads: [heads, e / 8]."""
    count = heads * (head_dim // 8)
    low, high = math.log(math.pi), math.log(10 * math.pi)
    freqs = torch.linspace(low, high, count + 1, device=device)[:-1].exp()
    return rearrange(freqs, "(frequency head) -> head frequency", head=heads).contiguous()


def axial_positions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Centres (y, x) of the cells of a map whose longer side spans [-1, 1], [H, W, 2]."""
    cell = 2 / max(height, width)
    y = (torch.arange(height, device=device) - (height - 1) / 2) * cell
    x = (torch.arange(width, device=device) - (width - 1) / 2) * cell
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)


def _compute(size: _Size, device: torch.device) -> Geometry:
    """Compute angles in float32 at least, and round their cosines and sines to the type."""
    wide = torch.promote_types(size.dtype, torch.float32)
    positions = axial_positions(size.height, size.width, device).to(wide)
    freqs = rotary_frequencies(size.heads, size.head_dim, device).to(wide)
    angles = (positions[..., None] * freqs[:, None, None, None, :]).flatten(-2)
    windows = None
    if size.window is not None:
        windows = cut_windows(size.height, size.width, size.window, dtype=size.dtype, device=device)
    return Geometry(angles.cos().to(size.dtype), angles.sin().to(size.dtype), windows)


def _move(geometry: Geometry, device: torch.device) -> Geometry:
    """Copy to a device; strides stay, by which the rows of the mask are aligned."""
    cos, sin, windows = geometry
    if windows is not None:
        windows = Windows(*(tensor.to(device) for tensor in windows))
    return Geometry(cos.to(device), sin.to(device), windows)


def _nbytes(geometry: Geometry) -> int:
    tensors = (geometry.cos, geometry.sin, *(geometry.windows or ()))
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

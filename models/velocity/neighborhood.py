"""Neighbourhood attention in plain PyTorch: time and memory linear in the number of tokens.

The query at (i, j) sees the k x k keys whose first row is clip(i - k // 2, 0, H - k), and likewise
its columns: at a border the window moves inside, so every query has the same number of keys; there
is no padding and no bias. An axis shorter than the window is seen whole.

The map is cut into tiles of 8 x 8 queries. Their windows lie together in one block of
(8 + k - 1)^2 keys, which is copied once and shared by the 64 queries; a mask keeps each to its own
window. For k = 7, against the definition: 14^2 / 7^2 = 4 times the operations, of a term that is 1
percent of either velocity network, and (14 / 8)^2 = 3.06 copies of the keys and values instead of
49. These exist for one chunk of tiles at a time, and the backward pass makes them anew.

There is one path for every device: masked `scaled_dot_product_attention` over gathered blocks. On
CUDA the mask leaves PyTorch's memory-efficient kernel, for its flash kernel takes none; that kernel
wants the mask as numbers to add, in the type of the queries, whose rows begin at multiples of 16
elements, and so it is made, once per size of a map (`cut_windows`). The gradients of overlapping
blocks are summed by atomic additions there (`index_add`), so that two runs may differ in the last
bit, unless ``torch.use_deterministic_algorithms`` is set.

Shapes: B batch, H x W map, e head dimension; along one axis n tiles, t queries and u keys per tile.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from models.recomputation import run_recomputed

TILE = 8  # queries per side; of 4, 8 and 16 the fastest on a CPU, forward and backward
CHUNK = 1 << 21  # elements of gathered keys at a time on a CPU; no tile's result depends on it
# On a GPU each chunk costs launches. LooUFormer's largest map in a step of 64 latents of 64 x 64
# gathers 64 x 4096 x 256 x 3.06 = 205 million elements of keys, 0.4 GB in bfloat16: one chunk.
DEVICE_CHUNK = 1 << 28
MASK_ALIGNMENT = 16  # elements; what `scaled_dot_product_attention` would else copy a mask for


class _Axis(NamedTuple):
    """One axis of the map, cut into n tiles."""

    queries: Tensor
    """Position of each query, [n, t]; after the end of the axis, its last position again."""
    keys: Tensor
    """Position of each key that a tile copies, [n, u]."""
    visible: Tensor
    """Whether the key lies in the query's window, [n, t, u]."""


class Windows(NamedTuple):
    """A map cut into n x m tiles: what its size and the window's decide."""

    queries: Tensor
    """Position in the flattened map of each query, [n, m t t], by rows of tiles."""
    keys: Tensor
    """Position of each key that a tile copies, [n, m u u]."""
    mask: Tensor
    """What is added to the scores, [n, m, t t, u u]: 0 in the query's window, else -infinity."""


def cut_windows(
    height: int, width: int, kernel_size: int, *, dtype: torch.dtype, device: torch.device
) -> Windows:
    """Cut a map into tiles, and find the keys of each and which of them its queries see.

    Args:
        height: rows of the map.
        width: columns of the map.
        kernel_size: side of the window, odd.
        dtype: of the queries, and so of the mask.
        device: of the queries.

    Raises:
        ValueError: ``kernel_size`` is even or not positive.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size={kernel_size}: a window has a middle, so give an odd number, like 7"
        )
    rows, columns = _tile(height, kernel_size, device), _tile(width, kernel_size, device)
    visible = rows.visible[:, None, :, None, :, None] & columns.visible[None, :, None, :, None, :]
    visible = rearrange(visible, "n m r c u w -> n m (r c) (u w)")
    count = visible.shape[-1]
    aligned = count + -count % MASK_ALIGNMENT
    mask = torch.zeros(*visible.shape[:-1], aligned, dtype=dtype, device=device)[..., :count]
    return Windows(
        _flat_positions(rows.queries, columns.queries, width),
        _flat_positions(rows.keys, columns.keys, width),
        mask.masked_fill_(~visible, -math.inf),
    )


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None = None
) -> Tensor:
    """Attend from each position of a map to the window around it; see `windowed_attention`.

    Args:
        q: queries [B, heads, H, W, e].
        k: keys, as ``q``.
        v: values, as ``q``.
        kernel_size: side k of the window, odd.
        scale: factor of the scores before the softmax; 1 / sqrt(e) if None.

    Returns:
        [B, heads, H, W, e].

    Raises:
        ValueError: ``kernel_size`` is even or not positive, or the shapes differ.
    """
    _check(q, k, v)
    H, W = q.shape[2:4]
    windows = cut_windows(H, W, kernel_size, dtype=q.dtype, device=q.device)
    q, k, v = (x.permute(0, 2, 3, 1, 4) for x in (q, k, v))
    return windowed_attention(q, k, v, windows, scale).permute(0, 3, 1, 2, 4)


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float | None = None
) -> Tensor:
    """Attend from each position of a map to its window, which was found beforehand.

    A NaN reaches the queries of every tile whose block holds it, a few more than its windows do,
    and never another sample.

    Args:
        q: queries [B, H, W, heads, e].
        k: keys, as ``q``.
        v: values, as ``q``.
        windows: of `cut_windows`, for this size of map, type and device.
        scale: factor of the scores before the softmax; 1 / sqrt(e) if None.

    Returns:
        [B, H, W, heads, e].
    """
    B, H, W, heads, e = q.shape
    n, m = windows.mask.shape[:2]
    r, c = min(TILE, H), min(TILE, W)  # queries per side of a tile

    def attend(q: Tensor, k: Tensor, v: Tensor, *some: Tensor) -> Tensor:
        """Attend within some rows of tiles: [H W, B, heads, e] -> [tiles, B heads, r c, e]."""
        queries, keys, mask = some
        tiles = mask.flatten(0, 1)
        return F.scaled_dot_product_attention(
            _gather(q, queries, len(tiles)),
            _gather(k, keys, len(tiles)),
            _gather(v, keys, len(tiles)),
            attn_mask=tiles[:, None],  # the same for all samples and heads
            scale=scale,
        )

    row = windows.keys.shape[1] * B * heads * e  # elements; 0 of an empty batch
    chunk = max(1, (CHUNK if q.device.type == "cpu" else DEVICE_CHUNK) // max(1, row))
    maps = [x.flatten(1, 2).transpose(0, 1) for x in (q, k, v)]
    chunks = zip(*(torch.split(whole, chunk) for whole in windows), strict=True)
    parts = [run_recomputed(attend, *maps, *some) for some in chunks]
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    tiled = mixed.view(n, m, B, heads, r, c, e).permute(2, 0, 4, 1, 5, 3, 6)
    return tiled.reshape(B, n * r, m * c, heads, e)[:, :H, :W]


def window_starts(length: int, kernel_size: int, device: torch.device | None = None) -> Tensor:
    """First key of the window of each position of an axis, clip(i - k // 2, 0, length - k)."""
    positions = torch.arange(length, device=device)
    return (positions - kernel_size // 2).clamp(0, max(0, length - kernel_size))


def window_flops(height: int, width: int, channels: int, kernel_size: int) -> int:
    """Operations of one image's attention by the definition, 4 N k^2 d (a multiply-add is two)."""
    return 4 * height * width * channels * min(kernel_size, height) * min(kernel_size, width)


def tiled_flops(height: int, width: int, channels: int, kernel_size: int) -> int:
    """Operations that `neighborhood_attention` spends on one image, forward."""
    pairs = 1
    for length in (height, width):
        axis = _tile(length, kernel_size, torch.device("meta"))
        pairs *= axis.visible.numel()
    return 4 * pairs * channels


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not q.shape == k.shape == v.shape or q.ndim != 5:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}: expected three equal shapes "
            "[B, heads, H, W, e]"
        )


def _tile(length: int, kernel_size: int, device: torch.device) -> _Axis:
    """Cut an axis into tiles, and find the block of keys that holds all windows of each."""
    per_query = min(kernel_size, length)
    per_tile = min(TILE, length)
    per_block = min(per_tile + per_query - 1, length)
    first = torch.arange(0, length, per_tile, device=device)
    # The last tile may hang over the end: its queries there are repetitions, cut off at the end.
    queries = (first[:, None] + torch.arange(per_tile, device=device)).clamp(max=length - 1)
    block = (first - per_query // 2).clamp(0, length - per_block)
    keys = block[:, None] + torch.arange(per_block, device=device)
    offset = keys[:, None, :] - window_starts(length, per_query, device)[queries][:, :, None]
    return _Axis(queries, keys, (offset >= 0) & (offset < per_query))


def _flat_positions(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Combine positions along both axes, [n, r] and [m, c] -> [n, m r c], of a flattened map."""
    positions = rows[:, None, :, None] * width + columns[None, :, None, :]
    return positions.flatten(1)


def _gather(x: Tensor, positions: Tensor, tiles: int) -> Tensor:
    """Copy what each tile needs of a map: [H W, B, heads, e] -> [tiles, B heads, r c, e].

    The copy has the order in which PyTorch's fused kernels return gradients: these need no other.
    """
    gathered = x.index_select(0, positions.flatten())
    _, B, heads, e = x.shape
    return gathered.view(tiles, positions.numel() // tiles, B * heads, e).transpose(1, 2)

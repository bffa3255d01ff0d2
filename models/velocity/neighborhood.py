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
CUDA the gradients of overlapping blocks are summed by atomic additions (`index_add`), so that two
runs may differ in the last bit, unless ``torch.use_deterministic_algorithms`` is set.

Shapes: B batch, H x W map, e head dimension; along one axis n tiles, t queries and u keys per tile.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from models.recomputation import run_recomputed

TILE = 8  # queries per side; of 4, 8 and 16 the fastest on a CPU, forward and backward
CHUNK = 1 << 21  # elements of gathered keys at a time; no tile's result depends on it


class _Axis(NamedTuple):
    """One axis of the map, cut into n tiles."""

    queries: Tensor
    """Position of each query, [n, t]; after the end of the axis, its last position again."""
    keys: Tensor
    """Position of each key that a tile copies, [n, u]."""
    visible: Tensor
    """Whether the key lies in the query's window, [n, t, u]."""


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None = None
) -> Tensor:
    """Attend from each position of a map to the window around it.

    A NaN reaches the queries of every tile whose block holds it, a few more than its windows do,
    and never another sample.

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
    _check(q, k, v, kernel_size)
    B, heads, H, W, e = q.shape
    rows, columns = _tile(H, kernel_size, q.device), _tile(W, kernel_size, q.device)
    r, c = rows.queries.shape[1], columns.queries.shape[1]  # queries per side of a tile
    mask = rows.visible[:, None, :, None, :, None] & columns.visible[None, :, None, :, None, :]
    mask = rearrange(mask, "n m r c u w -> n m (r c) (u w)")  # [n, m, queries, keys] of each tile

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attend within some rows of tiles, each [n, B, heads, t or u, W, e]."""
        mixed = F.scaled_dot_product_attention(
            _blocks(q, columns.queries),
            _blocks(k, columns.keys),
            _blocks(v, columns.keys),
            attn_mask=mask.flatten(0, 1).unsqueeze(1),  # the same for all samples and heads
            scale=scale,
        )
        return rearrange(
            mixed, "(n m) (b h) (r c) e -> n b h r (m c) e", n=len(mask), h=heads, r=r, c=c
        )

    row = rows.keys.shape[1] * columns.keys.numel() * B * heads * e  # elements; 0 of an empty batch
    chunk = max(1, CHUNK // max(1, row))
    wholes = _strips(q, rows.queries), _strips(k, rows.keys), _strips(v, rows.keys), mask
    parts = zip(*(torch.split(whole, chunk) for whole in wholes), strict=True)
    mixed = torch.cat([run_recomputed(attend, *part) for part in parts])
    return rearrange(mixed, "n b h r w e -> b h (n r) w e")[:, :, :H, :W]


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


def _check(q: Tensor, k: Tensor, v: Tensor, kernel_size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size={kernel_size}: a window has a middle, so give an odd number, like 7"
        )
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


def _strips(x: Tensor, positions: Tensor) -> Tensor:
    """Copy the rows of each row of tiles: [B, heads, H, W, e] -> [n, B, heads, t or u, W, e]."""
    rows = x.index_select(2, positions.flatten())
    return rearrange(rows, "b h (n r) w e -> n b h r w e", n=len(positions))


def _blocks(strips: Tensor, positions: Tensor) -> Tensor:
    """Copy the columns of each tile: [n, B, heads, r, W, e] -> [n m, B heads, r c, e]."""
    columns = strips.index_select(4, positions.flatten())
    return rearrange(columns, "n b h r (m c) e -> (n m) (b h) (r c) e", m=len(positions))

"""Neighbourhood attention against dense masked attention, as the map grows.

One sample, 4 heads of 64, a window of 7 x 7, float32, one core; each call is a forward and a
backward pass. The dense side is PyTorch's own kernel under an N x N mask, which is made beforehand
and not timed. That kernel keeps no N x N scores, but the mask becomes N x N floats.
"""

import math
import os
from collections.abc import Callable
from typing import Any

from tests.benchmarks.harness import RUNS, paired
from tests.benchmarks.models import peak_memory

SIDES = (32, 64, 128)
RUNS_OF_SIDE = {128: 2}  # there the dense side takes 20 s a call
HEADS, HEAD_DIM, WINDOW = 4, 64, 7
WARM_UP = 8  # side of a map that makes a process load its libraries before it is measured


def attention() -> dict[str, Any]:
    """Measure time and peak memory at 1,024, 4,096 and 16,384 tokens, and how they grow.

    Ours is "ours", dense is "theirs". The exponents are those of N between the smallest and the
    largest map: 1 is linear, 2 quadratic. Last, the memory that a whole block of PMRF at 512 px
    needs to train.
    """
    import torch

    from models.velocity.neighborhood import tiled_flops, window_flops

    torch.set_num_threads(1)
    # For the processes of `peak_memory`: freed tensors go back to the system at once, so the mark
    # is that of live tensors, and not of a heap with holes, which varies by 300 MiB.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    measured: dict[str, Any] = {}
    for side in SIDES:
        runs = RUNS_OF_SIDE.get(side, RUNS)
        measured[str(side**2)] = {
            "time": paired(_pass("neighborhood", side), _pass("dense", side), runs),
            "memory": {kind: peak_memory(_pass, kind, side) for kind in ("neighborhood", "dense")},
            "flops_over_definition": tiled_flops(side, side, HEADS * HEAD_DIM, WINDOW)
            / window_flops(side, side, HEADS * HEAD_DIM, WINDOW),
        }
    first, last = (measured[str(side**2)] for side in (SIDES[0], SIDES[-1]))

    def exponent(*path: str) -> float:
        small, large = first, last
        for key in path:
            small, large = small[key], large[key]
        return round(math.log(large / small) / math.log((SIDES[-1] / SIDES[0]) ** 2), 3)

    measured["exponents"] = {
        "time_neighborhood": exponent("time", "ours_s"),
        "time_dense": exponent("time", "theirs_s"),
        "memory_neighborhood": exponent("memory", "neighborhood", "added_mib"),
        "memory_dense": exponent("memory", "dense", "added_mib"),
    }
    measured["pmrf_block_16384_tokens"] = {
        dtype: peak_memory(_block_pass, 128, dtype) for dtype in ("float32", "bfloat16")
    }
    return measured


def _pass(kind: str, side: int) -> Callable[[], object]:
    """Draw queries, keys and values, and return a forward and backward pass over them."""
    import torch
    from torch.nn import functional as F

    from models.velocity.neighborhood import neighborhood_attention

    torch.set_num_threads(1)
    if side > WARM_UP:
        _pass(kind, WARM_UP)()
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, HEADS, side, side, HEAD_DIM)
    q, k, v = torch.randn(shape, generator=generator).requires_grad_().unbind()
    mask = _mask(side) if kind == "dense" else None

    def call() -> object:
        if mask is None:
            out = neighborhood_attention(q, k, v, WINDOW)
        else:
            flat = (x.flatten(2, 3) for x in (q, k, v))
            out = F.scaled_dot_product_attention(*flat, attn_mask=mask)
        return torch.autograd.grad(out.sum(), (q, k, v))

    return call


def _block_pass(side: int, dtype: str) -> Callable[[], object]:
    """Build the first block of PMRF, and return a forward and backward pass over a map."""
    import torch

    from models.velocity.hdit import PRESETS, Block
    from models.velocity.hourglass import level_geometry

    torch.set_num_threads(1)
    if side > WARM_UP:
        _block_pass(WARM_UP, dtype)()
    config = PRESETS["pmrf-512"]
    block = Block(config, 0)
    x = torch.randn(1, side, side, config.widths[0]).requires_grad_()
    c = torch.randn(1, config.mapping_width)
    like = x.to(getattr(torch, dtype))  # under autocast, of the type of the queries
    geometry = level_geometry(config, 0, side, side, like)

    def call() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            out = block(x, c, geometry)
        return torch.autograd.grad(out.sum(), (x, *block.parameters()))

    return call


def _mask(side: int) -> Any:
    """Say which keys each query sees, [N, N]."""
    import torch

    from models.velocity.neighborhood import window_starts

    offset = torch.arange(side) - window_starts(side, WINDOW)[:, None]
    seen = (offset >= 0) & (offset < WINDOW)
    return (seen[:, None, :, None] & seen[None, :, None, :]).reshape(side**2, side**2)

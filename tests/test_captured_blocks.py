"""Each kind of block of every network is one graph to PyTorch's compiler."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.predictor import swinir
from models.vae import blocks
from models.velocity import hdit, looformer

LOOFORMER = looformer.PRESETS["tiny"]
HDIT = hdit.PRESETS["tiny"]
SWINIR = swinir.PRESETS["tiny"]
MAP, WIDE_MAP, TOKENS, CONDITION = (2, 32, 16, 16), (2, 64, 16, 16), (2, 16, 16, 32), (2, 32)
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...] | None, ...]]] = {
    "sim-res": (lambda: blocks.SimResBlock(32, 32, "layer_norm", 8), (MAP,)),
    "sd-res": (lambda: blocks.SDResBlock(32, 64, "group_norm", 8), (MAP,)),
    "vae-attention": (lambda: blocks.SelfAttention(32, "layer_norm", 8), (MAP,)),
    "vae-upsample": (lambda: blocks.Upsample(32, 32), (MAP,)),
}
SLOW_BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...] | None, ...]]] = {
    "looformer-window": (
        lambda: looformer.Block(LOOFORMER, 32, "neighborhood"),
        (MAP, CONDITION),
    ),
    "looformer-global": (lambda: looformer.Block(LOOFORMER, 64, "global"), (WIDE_MAP, CONDITION)),
    "hdit-window": (lambda: hdit.Block(HDIT, 0), (TOKENS, CONDITION)),
    "hdit-global": (lambda: hdit.Block(HDIT, 1), ((2, 16, 16, 64), CONDITION)),
    "swinir-group": (lambda: swinir._Group(SWINIR, 2), ((2, 16, 16, 24), None)),
}


@pytest.mark.parametrize(
    "name",
    [*BLOCKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_BLOCKS)],
)
def test_a_block_is_captured_whole(name: str) -> None:
    """No operation and no value that is asked for breaks the graph, with gradients recorded.

    To follow einops in Python takes the compiler seconds, so that blocks with it are slow.
    """
    build, shapes = (BLOCKS | SLOW_BLOCKS)[name]
    torch._dynamo.reset()
    with torch.device("meta"):
        block = build()
        inputs = [None if shape is None else torch.empty(shape) for shape in shapes]

    made = torch.compile(block, fullgraph=True, backend="eager")(*inputs)

    assert made.requires_grad

"""What of a network torch.compile compiles: its blocks, each by itself.

A network repeats few kinds of blocks. Blocks of one kind and size share what was compiled for the
first of them, so that a network of fifty blocks compiles two or three graphs, and a kernel fuses
what a block does between two matrix products. What lies between blocks is a resizing layer here and
there, with nothing to fuse.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from models.metrics.backbones import VGG19
from models.predictor.swinir import _Block as SwinBlock
from models.vae.blocks import SDResBlock, SelfAttention, SimResBlock
from models.velocity import hdit, looformer

BLOCKS = (
    hdit.Block,
    looformer.Block,
    SDResBlock,
    SelfAttention,
    SimResBlock,
    SwinBlock,
    VGG19,  # all of it: a chain of convolutions without blocks
)
BACKEND = "inductor"
GRAPHS = 64
"""Of a kind of block at most, one for each width and size of a batch; PyTorch's limit is 8."""


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network, in the order of its modules."""
    return (module for module in network.modules() if isinstance(module, BLOCKS))


def compile_blocks(network: nn.Module, *, inside_hooks: bool = False) -> None:
    """Have every block compiled when it first runs, and again for inputs of another shape.

    Names and weights stay as they are. A block that cannot be captured whole, or too many shapes,
    raise an error of PyTorch's when they run.

    Args:
        network: whose blocks are compiled; a copy of it is not compiled.
        inside_hooks: leave hooks of a block as they are, and compile what they surround, as ZeRO 3
            needs it. Such a network must not be copied: the copy would run this one's blocks.
    """
    from torch._dynamo import config  # two seconds, which only who compiles has to spend

    config.recompile_limit = max(GRAPHS, config.recompile_limit)
    for block in blocks(network):
        if inside_hooks:
            block.forward = torch.compile(block.forward, **_options())
        else:
            block.compile(**_options())


def _options() -> dict[str, Any]:
    return {"backend": BACKEND, "fullgraph": True, "dynamic": False}

"""Compilation by block: one block of each kind and width is compiled, and serves all like it."""

from torch import nn

from models.predictor import swinir
from models.vae.blocks import SDResBlock, SimResBlock
from models.velocity import hdit, looformer

BLOCKS = (looformer.Block, hdit.Block, swinir._Block, SimResBlock, SDResBlock)


def compile_blocks(network: nn.Module, backend: str) -> int:
    """Compile the blocks of a network where they lie, for fixed shapes; returns how many.

    Raises:
        ValueError: a network without blocks.
    """
    blocks = [module for module in network.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise ValueError(f"{type(network).__name__} has none of {[b.__name__ for b in BLOCKS]}")
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)

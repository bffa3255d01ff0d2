"""The hourglass of both velocity networks: its configuration, its inputs, the way through it.

Levels go from high to low resolution. All but the last run twice, on the way down and on the way
up, with weights of their own; on the way up, each is joined with what it was on the way down.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.configuration import STRICT
from models.recomputation import run_block
from models.velocity.geometry import Geometry, map_geometry

AttentionKind = Literal["neighborhood", "global"]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class HourglassConfig:
    """What both networks are configured by; each tuple has one entry per level."""

    in_channels: PositiveInt = 3
    """Channels of x_t and of the velocity: 3 for images, C for latents."""
    condition_channels: NonNegativeInt = 0
    """Channels of `cond`, which is concatenated to x_t; 0 for an unconditional flow (PMRF)."""
    widths: tuple[PositiveInt, ...] = (256, 512, 1024)
    """Channels of each level."""
    depths: tuple[PositiveInt, ...] = (2, 2, 8)
    """Blocks of each level, per direction."""
    attentions: tuple[AttentionKind, ...] = ("neighborhood", "neighborhood", "global")
    """What a query of each level sees: the window around it, or the whole map."""
    head_dim: PositiveInt = 64
    """Channels per attention head."""
    kernel_size: PositiveInt = 7
    """Side of the neighbourhood's window."""
    ff_ratio: PositiveInt = 3
    """Hidden width of a feed-forward layer over its width; the mapping network's too."""
    mapping_width: PositiveInt = 768
    """Channels M of the time embedding."""
    mapping_depth: PositiveInt = 2
    """Feed-forward layers of the mapping network."""
    cosine_similarity: bool = True
    """Normalise queries and keys, and learn the scale of the scores per head."""
    zero_init: bool = True
    """Start each block, and the velocity, from zero."""

    def __post_init__(self) -> None:
        """Refuse what no network can be built from."""
        levels = {len(self.widths), len(self.depths), len(self.attentions)}
        if levels == {0} or len(levels) > 1:
            raise ValueError(
                f"widths={self.widths}, depths={self.depths}, attentions={self.attentions}: give "
                "each one entry per level"
            )
        if self.head_dim % 8 or any(width % self.head_dim for width in self.widths):
            raise ValueError(
                f"head_dim={self.head_dim}, widths={self.widths}: head_dim must be a multiple of 8,"
                " for the rotary frequencies, and divide each width"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size}: give an odd number, like 7")
        if self.mapping_width % 2:
            raise ValueError(f"mapping_width={self.mapping_width}: must be even (cosines, sines)")


def level_geometry(
    config: HourglassConfig, level: int, height: int, width: int, like: Tensor
) -> Geometry:
    """Return what the blocks of one level take beside a map of height x width and the condition."""
    window = config.kernel_size if config.attentions[level] == "neighborhood" else None
    heads = config.widths[level] // config.head_dim
    return map_geometry(heads, config.head_dim, window, height, width, like)


def level_geometries(
    config: HourglassConfig, height: int, width: int, like: Tensor
) -> list[Geometry]:
    """Return the geometry of every level, of which the first has maps of height x width."""
    levels = range(len(config.widths))
    return [level_geometry(config, i, height >> i, width >> i, like) for i in levels]


def join_condition(
    config: HourglassConfig, factor: int, x_t: Tensor, t: Tensor, cond: Tensor | None
) -> Tensor:
    """Check a velocity network's inputs and concatenate x_t and the condition along channels.

    Values are not checked, which would make a GPU wait: a NaN in one sample gives a NaN velocity
    of that sample.

    Raises:
        ValueError: a shape that the configuration does not allow.
    """
    if x_t.ndim != 4 or x_t.shape[1] != config.in_channels:
        raise ValueError(
            f"x_t {list(x_t.shape)}: this network takes [B, {config.in_channels}, H, W]"
        )
    B, _, H, W = x_t.shape
    if H < 1 or W < 1 or H % factor or W % factor:
        raise ValueError(
            f"x_t {list(x_t.shape)}: {H} x {W} is not divisible by {factor}, by which this network "
            "divides the map; pad to a multiple, and crop the result"
        )
    if t.shape != (B,) or not t.is_floating_point():
        raise ValueError(f"t {list(t.shape)} {t.dtype}: give a float per sample, [{B}], in [0, 1]")
    if not config.condition_channels:
        if cond is not None:
            raise ValueError(
                f"cond {list(cond.shape)}: this network is unconditional; build it with "
                f"condition_channels={cond.shape[1] if cond.ndim > 1 else 1}, or pass no cond"
            )
        return x_t
    expected = (B, config.condition_channels, H, W)
    if cond is None or cond.shape != expected:
        raise ValueError(
            f"cond {None if cond is None else list(cond.shape)}: condition_channels="
            f"{config.condition_channels} needs {list(expected)}"
        )
    return torch.cat((x_t, cond), dim=1)


class Hourglass(NamedTuple):
    """A network's levels and what is between them; all lists go from high to low resolution."""

    down_levels: nn.ModuleList
    merges: nn.ModuleList
    mid_level: nn.ModuleList
    splits: nn.ModuleList
    up_levels: nn.ModuleList

    def run(
        self, x: Tensor, c: Tensor, geometries: Sequence[Geometry], *, recompute: bool
    ) -> Tensor:
        """Pass a map down and up again.

        Args:
            x: map of the first level.
            c: condition of every block, [B, M].
            geometries: of the maps of each level.
            recompute: repeat each block's forward pass in backward, to keep only its input.
        """
        skips = []
        *between, last = geometries
        down = zip(self.down_levels, self.merges, between, strict=True)
        up = zip(self.up_levels, self.splits, between, strict=True)
        for blocks, merge, geometry in down:
            x = _run_blocks(blocks, x, c, geometry, recompute)
            skips.append(x)
            x = merge(x)
        x = _run_blocks(self.mid_level, x, c, last, recompute)
        for blocks, split, geometry in reversed(list(up)):
            x = _run_blocks(blocks, split(x, skips.pop()), c, geometry, recompute)
        return x


def _run_blocks(
    level: nn.Module, x: Tensor, c: Tensor, geometry: Geometry, recompute: bool
) -> Tensor:
    for block in level.children():
        x = run_block(block, x, c, geometry, recompute=recompute)
    return x

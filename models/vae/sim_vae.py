"""Sim-VAE (paper Sec. 4.1) and every row of Table 2, from one config.

Against SD-VAE: ResBlocks with one norm and one activation, LayerNorm per pixel, ResBlocks instead
of self-attention in the middle, and resizing layers that change the width along with the
resolution. No norm before the last convolutions, no quantisation convolutions, no scaling factor:
the flow works on the latents as they are.

Shapes: images [B, 3, H, W] in [-1, 1]; latents [B, C, h, w], h = H / f. In channels-last memory no
LayerNorm needs a copy.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.configuration import STRICT
from models.vae.autoencoder import Posterior, check_images, check_latent
from models.vae.blocks import (
    Alternating,
    Chain,
    Downsample,
    PixelShuffleUpsample,
    SDResBlock,
    SelfAttention,
    SimResBlock,
    Upsample,
    conv3x3,
    norm,
)

NormType = Literal["layer_norm", "group_norm"]
Mid = Literal["res_blocks", "self_attention"]
Resize = Literal["interpolate", "pixel_shuffle", "sd"]
ResBlock = Literal["sim", "sd"]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class SimVAEConfig:
    """One autoencoder of Table 2 or 3. The defaults are the paper's choice, f8c32."""

    latent_channels: PositiveInt = 32
    """Channels C of the latent."""
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (
        128,
        256,
        512,
        512,
    )
    """Width of each stage of the encoder; between two stages the resolution halves."""
    layers_per_block: PositiveInt = 2
    """ResBlocks per encoder stage; decoder stages have one more."""
    mid_layers: PositiveInt = 3
    """Layers of the middle, at the lowest resolution."""
    norm_type: NormType = "layer_norm"
    """``layer_norm`` over each pixel's channels, or ``group_norm`` (Table 2, "- layernorm")."""
    norm_groups: PositiveInt = 32
    """Groups of a group norm."""
    mid: Mid = "res_blocks"
    """``res_blocks``, or ``self_attention`` in every second layer (Table 2, "- 3x3 conv")."""
    resize: Resize = "interpolate"
    """``interpolate`` repeats pixels and changes the width on the way. Table 2's "- interpolate"
    may mean ``pixel_shuffle``, or ``sd``: the next ResBlock changes it; one-sided padding."""
    res_block: ResBlock = "sim"
    """``sim``: one norm, one activation. ``sd``: two of each, and with them SD's ends: norm and
    SiLU before the last convolutions, 1x1 quant convolutions around the latent."""

    def __post_init__(self) -> None:
        """Refuse what no network can be built from."""
        widths = self.block_out_channels
        if self.norm_type == "group_norm" and any(width % self.norm_groups for width in widths):
            raise ValueError(
                f"norm_groups={self.norm_groups} must divide each of block_out_channels={widths}"
            )
        if self.mid == "self_attention" and (self.mid_layers < 3 or self.mid_layers % 2 == 0):
            raise ValueError(
                f"mid_layers={self.mid_layers}: self-attention stands between ResBlocks; give 3, 5…"
            )


PRESETS: dict[str, SimVAEConfig] = {  # reconstruction of CelebA-Test in Tables 2, 3: PSNR / LPIPS
    "sim-vae-f8c32": SimVAEConfig(),  # 42.7129 / 0.0073
    "sim-vae-f8c16": SimVAEConfig(latent_channels=16),  # 37.9034 / 0.0261
    "sim-vae-f8c24": SimVAEConfig(latent_channels=24),  # 40.8142 / 0.0116
    "sim-vae-f8c48": SimVAEConfig(latent_channels=48),  # 45.0554 / 0.0033
    # Table 2 removes one modification at a time.
    "sim-vae-f8c32-group-norm": SimVAEConfig(norm_type="group_norm"),  # 43.0518 / 0.0063
    "sim-vae-f8c32-self-attention": SimVAEConfig(mid="self_attention"),  # unstable in the paper
    # Its "- interpolate", 42.9766 / 0.0075, is one of these two readings.
    "sim-vae-f8c32-pixel-shuffle": SimVAEConfig(resize="pixel_shuffle"),
    "sim-vae-f8c32-sd-resize": SimVAEConfig(resize="sd"),
    # SD-VAE is what remains without any: 40.3979 / 0.0145
    "sd-vae-f8c32": SimVAEConfig(
        norm_type="group_norm", mid="self_attention", resize="sd", res_block="sd"
    ),
    # for two cores and images of 128 pixels
    **{
        f"small-f4c{channels}": SimVAEConfig(
            latent_channels=channels,
            block_out_channels=(16, 32, 64),
            layers_per_block=1,
            norm_groups=8,
        )
        for channels in (4, 8, 16)
    },
    # SD-VAE as large as small-f4c8: 0.81 and 0.80 million parameters
    "small-sd-f4c8": SimVAEConfig(
        latent_channels=8,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        norm_groups=8,
        norm_type="group_norm",
        mid="self_attention",
        resize="sd",
        res_block="sd",
    ),
    "tiny": SimVAEConfig(  # for tests and smoke runs, f8c4
        latent_channels=4, block_out_channels=(8, 16, 32, 32), layers_per_block=1, norm_groups=8
    ),
}


def preset(name: str) -> SimVAEConfig:
    """Look a preset up.

    Raises:
        ValueError: an unknown name, with the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown Sim-VAE preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


class SimVAE(nn.Module):
    """An autoencoder of Table 2, built from ``config``.

    Args:
        config: which one.
        gradient_checkpointing: compute activations again in the backward pass, a third more work.
    """

    def __init__(self, config: SimVAEConfig, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        has_quant = config.res_block == "sd"
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if has_quant else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if has_quant else nn.Identity()
        self.encoder.recompute = self.decoder.recompute = gradient_checkpointing

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent cell along one axis: f."""
        return 1 << (len(self.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels C of the latent."""
        return self.config.latent_channels

    def encode(self, images: Tensor) -> Posterior:
        """Turn images [B, 3, H, W] in [-1, 1] into a posterior over latents [B, C, h, w].

        The range is not checked, since reading the values would wait for the device.

        Raises:
            TypeError: images are not floats.
            ValueError: not three channels, or a side that f does not divide.
        """
        check_images(images, self.downsample_factor)
        return Posterior.from_moments(self.quant_conv(self.encoder(images)))

    def decode(self, latent: Tensor) -> Tensor:
        """Turn latents [B, C, h, w] into images [B, 3, H, W], about [-1, 1], not clamped.

        Raises:
            ValueError: not C channels.
        """
        check_latent(latent, self.latent_channels)
        images: Tensor = self.decoder(self.post_quant_conv(latent))
        return images

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        sample_posterior: bool = False,
    ) -> tuple[Tensor, Posterior]:
        """Encode and decode in one call, so that a data-parallel wrapper sees both.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            generator: of the posterior's noise.
            sample_posterior: decode a sample, as in training, instead of the mode; torch.compile
                breaks its graph there, since it cannot capture a generator.

        Returns:
            The reconstruction [B, 3, H, W] and the posterior.

        Raises:
            ValueError: to sample without a generator; or as in `encode`.
        """
        posterior = self.encode(images)
        latent = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(latent), posterior


def _encoder(config: SimVAEConfig) -> Chain:
    """Build images [B, 3, H, W] -> moments [B, 2C, h, w]."""
    widths = config.block_out_channels
    stages = (
        _stage(config, arriving, width, config.layers_per_block, **_down(config, width, leaving))
        for arriving, width, leaving in _plan(config, widths)
    )
    return Chain(
        conv_in=conv3x3(3, widths[0]),
        down_blocks=nn.Sequential(*stages),
        mid_block=_middle(config),
        **_head(config, widths[-1]),
        conv_out=conv3x3(widths[-1], 2 * config.latent_channels),
    )


def _decoder(config: SimVAEConfig) -> Chain:
    """Build latents [B, C, h, w] -> images [B, 3, H, W]."""
    widths = config.block_out_channels[::-1]
    stages = (
        _stage(config, arriving, width, config.layers_per_block + 1, **_up(config, width, leaving))
        for arriving, width, leaving in _plan(config, widths)
    )
    return Chain(
        conv_in=conv3x3(config.latent_channels, widths[0]),
        mid_block=_middle(config),
        up_blocks=nn.Sequential(*stages),
        **_head(config, widths[-1]),
        conv_out=conv3x3(widths[-1], 3),
    )


def _plan(config: SimVAEConfig, widths: tuple[int, ...]) -> Iterator[tuple[int, int, int | None]]:
    """Yield for each stage the width that arrives, its own, and the one its resizer leaves.

    SD changes the width in a stage's first ResBlock, Sim-VAE in the resizer before it (Fig. 5).
    The last stage has no resizer.
    """
    before, after = (widths[0], *widths[:-1]), (*widths[1:], None)
    for last, width, following in zip(before, widths, after, strict=True):
        if config.resize == "sd":
            yield last, width, None if following is None else width
        else:
            yield width, width, following


def _stage(
    config: SimVAEConfig, arriving: int, width: int, layers: int, **resizer: nn.Module
) -> nn.Sequential:
    """Build the ResBlocks of one resolution and its resizer, if it has one."""
    resnets = _res_blocks(config, arriving, *[width] * layers)
    return nn.Sequential(OrderedDict(resnets=resnets, **resizer))


def _down(config: SimVAEConfig, width: int, leaving: int | None) -> dict[str, nn.Module]:
    if leaving is None:
        return {}
    if config.resize == "sd":
        return {"downsamplers": nn.Sequential(Downsample(width, leaving, symmetric=False))}
    return {"downsampler": Downsample(width, leaving, symmetric=True)}


def _up(config: SimVAEConfig, width: int, leaving: int | None) -> dict[str, nn.Module]:
    if leaving is None:
        return {}
    if config.resize == "sd":
        return {"upsamplers": nn.Sequential(Upsample(width, leaving))}
    layer = PixelShuffleUpsample if config.resize == "pixel_shuffle" else Upsample
    return {"upsampler": layer(width, leaving)}


def _middle(config: SimVAEConfig) -> nn.Sequential:
    """Build the layers of the lowest resolution; an attention takes the place of a ResBlock."""
    width = config.block_out_channels[-1]
    if config.mid == "res_blocks":
        resnets = _res_blocks(config, *[width] * (config.mid_layers + 1))
        return nn.Sequential(OrderedDict(resnets=resnets))
    attentions = config.mid_layers // 2
    resnets = _res_blocks(config, *[width] * (attentions + 2))
    layers = (SelfAttention(width, config.norm_type, config.norm_groups) for _ in range(attentions))
    return Alternating(OrderedDict(resnets=resnets, attentions=nn.Sequential(*layers)))


def _res_blocks(config: SimVAEConfig, *widths: int) -> nn.Sequential:
    """Build one ResBlock from each width to the next."""
    block = SimResBlock if config.res_block == "sim" else SDResBlock
    return nn.Sequential(
        *(block(*pair, config.norm_type, config.norm_groups) for pair in pairwise(widths))
    )


def _head(config: SimVAEConfig, width: int) -> dict[str, nn.Module]:
    """Build what SD-VAE has before its last convolutions."""
    if config.res_block == "sim":
        return {}
    out_norm = norm(config.norm_type, width, config.norm_groups)
    return {"conv_norm_out": out_norm, "conv_act": nn.SiLU()}

"""The posterior-mean predictor: SwinIR as DifFace trained it (paper Sec. 3.3, 6.1).

The published network is `swinir_L`, with the key layout of its checkpoint. It was trained with an
L1 loss, so it predicts something closer to a conditional median than to the posterior mean.
DifFace's training dropped paths at random (stochastic depth, 0.1); there is none of that here.

Shapes: lq [B, 3, H, W] in [0, 1]; features [B, C, h, w] and tokens [B, h, w, C] with h = H / r for
the unshuffling factor r; windows [B, n, M * M, C] for n windows of M x M tokens.
"""

import math
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.autocast import LayerNorm, repeat_pixels
from models.checkpoint import CheckpointNotFoundError, load_strict, read_state_dict
from models.configuration import STRICT
from models.pixel_shuffle import PixelUnshuffle
from models.predictor.window_attention import WindowAttention, shift_mask
from models.recomputation import run_block

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, as in every SwinIR
CHECKPOINT = "swinir_restoration512_L1.pth"
LICENCE = "NTU S-Lab 1.0, non-commercial use only"
WHERE = (
    f"get {CHECKPOINT} from https://github.com/zsyOAOA/DifFace/releases/download/V1.0/{CHECKPOINT} "
    f"and put it there (licence: {LICENCE})"
)
EXPECTED = "expected finite values in [0, 1]: map uint8 by x / 255 and [-1, 1] by (x + 1) / 2"


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class SwinIRConfig:
    """A SwinIR that shuffles pixels into channels first. The defaults are DifFace's."""

    embed_dim: PositiveInt = 180
    """Width C of the tokens."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (6,) * 8
    """Transformer blocks of each group; every second one shifts its windows."""
    heads: PositiveInt = 6
    """Attention heads; they share ``embed_dim``."""
    window_size: int = 8
    """Side M of a window, in tokens; even, since half of it is the shift."""
    mlp_ratio: PositiveInt = 2
    """Width of the MLP's middle, in multiples of ``embed_dim``."""
    features: PositiveInt = 64
    """Width after the body, where the pixels come back."""
    unshuffle: int = 8
    """Factor r by which pixels move into channels and, at the end, back: a power of two."""
    image_size: PositiveInt = 512
    """Side in pixels for which the shift masks are stored; other sizes compute theirs."""

    def __post_init__(self) -> None:
        """Refuse what no network can be built from."""
        if self.embed_dim % self.heads:
            raise ValueError(f"heads={self.heads} must divide embed_dim={self.embed_dim}")
        if self.window_size < 2 or self.window_size % 2:
            raise ValueError(f"window_size={self.window_size}: give an even number, 2 or more")
        if self.unshuffle < 2 or self.unshuffle & (self.unshuffle - 1):
            raise ValueError(f"unshuffle={self.unshuffle}: give a power of two, 2 or more")
        if self.image_size % self.multiple:
            raise ValueError(
                f"image_size={self.image_size}: must be a multiple of unshuffle * window_size = "
                f"{self.multiple}"
            )

    @property
    def multiple(self) -> int:
        """What sides are padded to a multiple of, in pixels: one window."""
        return self.unshuffle * self.window_size


PRESETS: dict[str, SwinIRConfig] = {
    "swinir_L": SwinIRConfig(),  # DifFace's checkpoint, of the paper and of PMRF at 512
    "swinir_M": SwinIRConfig(embed_dim=120, depths=(6,) * 5),  # of PMRF's experiments at 256
    "tiny": SwinIRConfig(  # for tests and smoke runs
        embed_dim=24, depths=(2, 2), heads=2, window_size=4, unshuffle=4, image_size=64
    ),
    "small": SwinIRConfig(  # for two cores and images of 128 pixels
        embed_dim=32, depths=(2, 2, 2), heads=2, features=16, unshuffle=4, image_size=128
    ),
}


def preset(name: str) -> SwinIRConfig:
    """Look a preset up.

    Raises:
        ValueError: an unknown name, with the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown SwinIR preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


class SwinIR(nn.Module):
    """Maps low-quality images to what they show, as far as that is certain."""

    rgb_mean: Tensor

    def __init__(self, config: SwinIRConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # True: repeat each group's forward pass in backward
        width = config.embed_dim
        self.register_buffer("rgb_mean", torch.tensor(RGB_MEAN).view(3, 1, 1), persistent=False)
        self.conv_first = nn.Sequential(
            PixelUnshuffle(config.unshuffle), _conv3x3(3 * config.unshuffle**2, width)
        )
        self.patch_embed = _PatchEmbed(width)
        self.layers = nn.ModuleList(_Group(config, depth) for depth in config.depths)
        self.norm = LayerNorm(width)
        self.conv_after_body = _conv3x3(width, width)
        self.conv_before_upsample = nn.Sequential(
            _conv3x3(width, config.features), nn.LeakyReLU(0.01)
        )
        for number in range(1, 1 + int(math.log2(config.unshuffle))):
            self.add_module(f"conv_up{number}", _conv3x3(config.features, config.features))
        self.conv_hr = _conv3x3(config.features, config.features)
        self.conv_last = _conv3x3(config.features, 3)
        self.apply(_initialise)

    @torch.no_grad()
    def posterior_mean(self, lq: Tensor) -> Tensor:
        """Predict the posterior mean of images [B, 3, H, W], both in [0, 1], without gradients.

        Raises:
            TypeError: not floating point.
            ValueError: as `forward`; or values outside [0, 1], or not finite.
            RuntimeError: instead, for such values on a GPU or in a compiled graph, where no one
                waits to read them. A GPU raises it with the next call that waits for it, and
                serves the process no longer.
        """
        _check_images(lq, self.config.multiple)
        _check_range(lq)
        prediction: Tensor = self(lq)
        return prediction.clamp(0, 1)

    def forward(self, lq: Tensor) -> Tensor:
        """Map images [B, 3, H, W] in [0, 1] to the same shape, about [0, 1], not clamped.

        Sides that are not whole windows are padded by reflection, and cropped back.

        Raises:
            TypeError: not floating point.
            ValueError: not [B, 3, H, W], or a side too short to be reflected.
        """
        _check_images(lq, self.config.multiple)
        height, width = lq.shape[2:]
        right, bottom = (_missing(side, self.config.multiple) for side in (width, height))
        x = F.pad(lq, (0, right, 0, bottom), mode="reflect") - self.rgb_mean
        shallow = self.conv_first(x)  # [B, C, h, w]
        x = shallow + self.conv_after_body(self._body(shallow))
        x = self._upsample(self.conv_before_upsample(x)) + self.rgb_mean
        return x[:, :, :height, :width]

    def _body(self, features: Tensor) -> Tensor:
        """Map features [B, C, h, w] through the groups of transformer blocks."""
        h, w = features.shape[2:]
        side = self.config.image_size // self.config.unshuffle
        mask = None
        if (h, w) != (side, side):
            mask = shift_mask(h, w, self.config.window_size, features.device)
        tokens = self.patch_embed(features.permute(0, 2, 3, 1))
        for layer in self.layers:
            tokens = run_block(layer, tokens, mask, recompute=self.activation_checkpointing)
        normed: Tensor = self.norm(tokens)
        return normed.permute(0, 3, 1, 2)

    def _upsample(self, x: Tensor) -> Tensor:
        """Map [B, 64, h, w] to images [B, 3, H, W]: repeat pixels, convolve, three times over."""
        for number in range(1, 1 + int(math.log2(self.config.unshuffle))):
            x = F.leaky_relu(self.get_submodule(f"conv_up{number}")(repeat_pixels(x)), 0.2)
        images: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))
        return images


class _PatchEmbed(nn.Module):
    """Patches of one token: only a norm is left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, h, w, C] to the same shape."""
        normed: Tensor = self.norm(tokens)
        return normed


class _Group(nn.Module):
    """Transformer blocks and a convolution in a residual branch (RSTB in SwinIR's paper)."""

    def __init__(self, config: SwinIRConfig, depth: int) -> None:
        super().__init__()
        blocks = nn.ModuleList(_Block(config, shifted=number % 2 == 1) for number in range(depth))
        self.residual_group = nn.ModuleDict({"blocks": blocks})
        self.conv = _conv3x3(config.embed_dim, config.embed_dim)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Map [B, h, w, C] to the same shape; ``mask`` replaces the stored one."""
        x = tokens
        for block in self.residual_group.get_submodule("blocks").children():
            x = block(x, mask)
        mixed: Tensor = self.conv(x.permute(0, 3, 1, 2))
        return tokens + mixed.permute(0, 2, 3, 1)


class _Block(nn.Module):
    """Attention inside windows, then an MLP, each in a residual branch behind a norm."""

    attn_mask: Tensor | None

    def __init__(self, config: SwinIRConfig, *, shifted: bool) -> None:
        super().__init__()
        width, side = config.embed_dim, config.image_size // config.unshuffle
        self.window_size = config.window_size
        self.shift = config.window_size // 2 if shifted else 0
        self.norm1 = LayerNorm(width)
        self.attn = WindowAttention(width, config.heads, config.window_size)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(width, config.mlp_ratio * width),
                "fc2": nn.Linear(config.mlp_ratio * width, width),
            }
        )
        mask = shift_mask(side, side, config.window_size) if shifted else None
        self.register_buffer("attn_mask", mask)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Map [B, h, w, C] to the same shape; ``mask`` [n, MM, MM] is for another h, w."""
        tokens = tokens + self._attend(self.norm1(tokens), mask)
        hidden: Tensor = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))
        return tokens + hidden

    def _attend(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Attend inside windows; shifted ones wrap around, and the mask undoes the wrapping."""
        size, h = self.window_size, tokens.shape[1]
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = self.attn_mask if mask is None else mask
        else:
            mask = None
        windows = rearrange(tokens, "b (h m1) (w m2) c -> b (h w) (m1 m2) c", m1=size, m2=size)
        tokens = rearrange(
            self.attn(windows, mask),
            "b (h w) (m1 m2) c -> b (h m1) (w m2) c",
            h=h // size,
            m1=size,
        )
        return tokens.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else tokens


def load_predictor(path: str | Path, config: SwinIRConfig = PRESETS["swinir_L"]) -> SwinIR:
    """Load a published SwinIR, frozen, in evaluation mode, float32 on the CPU.

    Args:
        path: the weights, in any form that `read_state_dict` knows.
        config: what they are the weights of.

    Raises:
        CheckpointError: missing (and then where to get it), damaged, or of another architecture.
    """
    try:
        state_dict = read_state_dict(path)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(f"{path}: no such file; {WHERE}") from error
    model = SwinIR(config)
    load_strict(model, state_dict, path)
    return model.eval().requires_grad_(False)


def _check_images(images: Tensor, multiple: int) -> None:
    """Refuse images that the network cannot take; looks at the shape only."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"lq has shape {list(images.shape)}; expected [B, 3, H, W] in RGB")
    if not images.is_floating_point():
        raise TypeError(f"lq is {images.dtype}; expected floats in [0, 1], as x / 255")
    if any(_missing(side, multiple) >= side for side in images.shape[2:]):
        raise ValueError(
            f"lq is {images.shape[2]} x {images.shape[3]}; sides are padded by reflection to "
            f"multiples of {multiple}, so give more than {multiple // 2} pixels: resize first"
        )


def _check_range(lq: Tensor) -> None:
    """Refuse values outside [0, 1], and NaN; on a GPU and when compiled, without reading them."""
    low, high = torch.aminmax(lq)
    is_unit = (low >= 0) & (high <= 1)  # false for NaN too
    if lq.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(is_unit, f"lq leaves its range; {EXPECTED}")
    elif not is_unit:
        raise ValueError(f"lq ranges over [{low:.4g}, {high:.4g}]; {EXPECTED}")


def _missing(side: int, multiple: int) -> int:
    """Count the pixels up to the next multiple."""
    return (multiple - side % multiple) % multiple  # -side % multiple stops torch.compile


def _conv3x3(channels: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels_out, 3, padding=1)


def _initialise(module: nn.Module) -> None:
    """Start linear layers as Swin transformers do: a narrow normal, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

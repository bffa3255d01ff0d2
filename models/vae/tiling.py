"""Encode and decode images too large for one pass, in tiles that overlap.

A tile is computed with a halo of its neighbours' cells, which is then cropped away. Convolutions
see only so far, and LayerNorm per pixel not beyond its pixel; with a halo as wide as the receptive
field (`exact_halo`) a tile's own cells are therefore what one pass over the whole image gives, up
to the rounding of a convolution at another size. So the tiles are cropped and not blended: there
is no seam to hide, and with a smaller halo the cells cropped away are the wrong ones, which
blending would mix in again. Tiles at the image border end there, and so see the same padding.

What a smaller halo leaves, decoding in tiles of 32 cells: relative error in L2 at random weights
25 % without a halo, 3 % at 5 cells, 0.04 % at 10, 3e-7 at 15, rounding at 20, the exact halo of
f8. Trained weights need not fade alike: measure them before choosing less.

Group normalisation and self-attention look at the whole image at once: such an autoencoder has no
exact halo, and its tiles differ in tone. The caller may still choose a halo and accept that.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from models.vae.autoencoder import Autoencoder, Posterior, check_images, check_latent
from models.vae.blocks import (
    Chain,
    Downsample,
    PixelLayerNorm,
    PixelShuffleUpsample,
    SDResBlock,
    SelfAttention,
    SimResBlock,
    Upsample,
)
from models.vae.sim_vae import SimVAE

TILE = 64  # cells: 512 px at f = 8


def exact_halo(vae: SimVAE) -> tuple[int, int]:
    """Return the narrowest halos, in latent cells, of exact tiled encoding and decoding.

    Raises:
        ValueError: a layer that sees the whole image.
    """
    factor = vae.downsample_factor
    first, last = receptive_field(vae.encoder, 0, 0)  # pixels that cell 0 depends on
    encode = max(-first / factor, (last - (factor - 1)) / factor)
    first, last = receptive_field(vae.decoder, 0, factor - 1)  # cells that its pixels depend on
    decode = max(-first, last)
    return math.ceil(encode), decode


def receptive_field(layers: Chain, first: int, last: int) -> tuple[int, int]:
    """Return the first and last input index, on one axis, that outputs ``first..last`` depend on.

    Raises:
        ValueError: a layer that sees the whole image.
    """
    for layer in reversed(list(layers.layers())):
        first, last = _needed(layer, first, last)
    return first, last


def _needed(layer: nn.Module, first: int, last: int) -> tuple[int, int]:
    unbounded = [part for part in layer.modules() if isinstance(part, nn.GroupNorm | SelfAttention)]
    if unbounded:
        raise ValueError(_GLOBAL.format(f"a {type(unbounded[0]).__name__}"))
    match layer:
        case nn.SiLU() | PixelLayerNorm():
            reach = first, last
        case nn.Conv2d():  # 3 x 3
            reach = first - 1, last + 1
        case SimResBlock() | SDResBlock():
            reach = first - 2, last + 2
        case Downsample(symmetric=True):
            reach = 2 * first - 1, 2 * last + 1
        case Downsample():
            reach = 2 * first, 2 * last + 2
        case Upsample():  # the convolution comes after the doubling
            reach = (first - 1) // 2, (last + 1) // 2
        case PixelShuffleUpsample():  # and before it here
            reach = first // 2 - 1, last // 2 + 1
        case _:
            raise TypeError(f"the receptive field of a {type(layer).__name__} is not known here")
    return reach


_GLOBAL = (
    "{} sees the whole image, so no halo makes tiles exact: run the image in one pass, or "
    "give a halo in cells and accept that tiles differ"
)


def encode_tiled(
    vae: Autoencoder, images: Tensor, *, tile: int = TILE, halo: int | None = None
) -> Posterior:
    """Encode as ``vae.encode`` does, with the activations of one tile at a time.

    Args:
        vae: the autoencoder.
        images: [B, 3, H, W] in [-1, 1].
        tile: side of a tile's own part, in latent cells.
        halo: cells around it that are computed too; None for the exact number, about 16 for
            Sim-VAE f8, at which 512 px of tile cost (1 + 2 * 16 / 64) ** 2 = 2.3 times theirs.

    Returns:
        The posterior over latents [B, C, h, w].

    Raises:
        ValueError: as ``vae.encode``; or no halo given and none exact.
    """
    factor = vae.downsample_factor
    check_images(images, factor)
    halo = _halo(vae, 0) if halo is None else halo

    def moments(rows: slice, columns: slice) -> Tensor:
        window = images[:, :, _times(rows, factor), _times(columns, factor)]
        return torch.cat(vae.encode(window), dim=1)

    height, width = images.shape[2] // factor, images.shape[3] // factor
    mean, logvar = _assemble(moments, height, width, (tile, halo, 1)).chunk(2, dim=1)
    return Posterior(mean, logvar)


def decode_tiled(
    vae: Autoencoder, latent: Tensor, *, tile: int = TILE, halo: int | None = None
) -> Tensor:
    """Decode as ``vae.decode`` does, with the activations of one tile at a time.

    Args:
        vae: the autoencoder.
        latent: [B, C, h, w].
        tile: side of a tile's own part, in latent cells.
        halo: cells around it that are computed too; None for the exact number, about 20 for
            Sim-VAE f8.

    Returns:
        Images [B, 3, H, W].

    Raises:
        ValueError: as ``vae.decode``; or no halo given and none exact.
    """
    check_latent(latent, vae.latent_channels)
    halo = _halo(vae, 1) if halo is None else halo

    def pixels(rows: slice, columns: slice) -> Tensor:
        return vae.decode(latent[:, :, rows, columns])

    height, width = latent.shape[2:]
    return _assemble(pixels, height, width, (tile, halo, vae.downsample_factor))


def _halo(vae: Autoencoder, half: int) -> int:
    if isinstance(vae, SimVAE):
        return exact_halo(vae)[half]
    raise ValueError(_GLOBAL.format(f"a {type(vae).__name__}"))


def _assemble(
    compute: Callable[[slice, slice], Tensor], height: int, width: int, sizes: tuple[int, int, int]
) -> Tensor:
    """Compute every tile of ``height`` x ``width`` cells with its halo, crop it and join them.

    ``sizes`` are the tile and halo in cells, and the outputs per cell.
    """
    tile, halo, scale = sizes
    if tile < 1 or halo < 0:
        raise ValueError(f"tile={tile}, halo={halo}: a tile has at least 1 cell, a halo 0 or more")
    return torch.cat(
        [
            torch.cat(
                [
                    compute(rows, columns)[:, :, _times(row, scale), _times(column, scale)]
                    for columns, column in _windows(width, tile, halo)
                ],
                dim=3,
            )
            for rows, row in _windows(height, tile, halo)
        ],
        dim=2,
    )


def _windows(length: int, tile: int, halo: int) -> Iterator[tuple[slice, slice]]:
    """Yield each tile with its halo, then the tile's own part within that."""
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        first = max(start - halo, 0)
        yield slice(first, min(stop + halo, length)), slice(start - first, stop - first)


def _times(cells: slice, scale: int) -> slice:
    return slice(cells.start * scale, cells.stop * scale)

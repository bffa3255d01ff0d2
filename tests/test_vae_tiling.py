"""Tiled equals untiled from the stated overlap on, and how far off it is below."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.vae.sim_vae import PRESETS, SimVAE, SimVAEConfig
from models.vae.tiling import decode_tiled, encode_tiled, exact_halo, receptive_field

# As deep as the paper's, and narrow: the receptive field is a matter of depth.
DEEP = dataclasses.replace(PRESETS["sim-vae-f8c32"], latent_channels=2, block_out_channels=(4,) * 4)
# f4, so that a tile with its halo is small: halos of 4 and 8 cells.
SHALLOW = dataclasses.replace(DEEP, block_out_channels=(4,) * 3, layers_per_block=1, mid_layers=1)
EXACT = [{}, {"resize": "pixel_shuffle"}, {"resize": "sd"}]
NEVER_EXACT = [{"norm_type": "group_norm", "norm_groups": 2}, {"mid": "self_attention"}]
by_exact_design = pytest.mark.parametrize("changes", EXACT, ids=str)


def build(config: SimVAEConfig, **changes: object) -> SimVAE:
    """Build an autoencoder in float64 with fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SimVAE(dataclasses.replace(config, **changes)).double()


def draw(*shape: int) -> Tensor:
    """Draw images or latents in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def dependence(gradient: Tensor) -> tuple[int, int]:
    """Return the first and last row with a gradient."""
    rows = gradient.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    return int(rows[0]), int(rows[-1])


@by_exact_design
def test_receptive_field_is_what_gradients_reach(changes: dict[str, str]) -> None:
    """The derived first and last row are exactly those with a gradient, in both halves."""
    vae = build(DEEP, **changes)
    images = draw(1, 3, 41 * 8, 8).requires_grad_()
    vae.encoder(images)[:, :, 20].sum().backward()
    latent = draw(1, 2, 61, 1).requires_grad_()
    vae.decoder(latent)[:, :, 240:248].sum().backward()

    first, last = receptive_field(vae.encoder, 0, 0)
    assert dependence(images.grad) == (160 + first, 160 + last)
    first, last = receptive_field(vae.decoder, 0, 7)
    assert dependence(latent.grad) == (30 + first, 30 + last)


@pytest.mark.parametrize(
    ("name", "halos"),
    [
        ("sim-vae-f8c32", (16, 20)),
        ("sim-vae-f8c48", (16, 20)),
        ("sim-vae-f8c32-pixel-shuffle", (16, 21)),
        ("sim-vae-f8c32-sd-resize", (16, 20)),
    ],
)
def test_halos_of_the_presets(name: str, halos: tuple[int, int]) -> None:
    """Sim-VAE's latent cell sees 124 px to each side, and its pixels 20 cells: 128 and 160 px."""
    with torch.device("meta"):
        assert exact_halo(SimVAE(PRESETS[name])) == halos


@by_exact_design
@torch.no_grad()
def test_tiles_with_the_exact_halo_equal_one_pass(changes: dict[str, str]) -> None:
    """At the default halo, posterior and images agree to the rounding of float64."""
    vae = build(SHALLOW, **changes)
    images = draw(2, 3, 4 * 29, 4 * 23)
    posterior, latent = vae.encode(images), draw(2, 2, 29, 23)

    tiled = encode_tiled(vae, images, tile=7)

    torch.testing.assert_close(tiled.mean, posterior.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(tiled.logvar, posterior.logvar, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        decode_tiled(vae, latent, tile=7), vae.decode(latent), rtol=0, atol=1e-12
    )


@settings(max_examples=20)
@given(height=st.integers(1, 20), width=st.integers(1, 20), tile=st.integers(1, 24))
@torch.no_grad()
def test_any_size_is_covered_by_any_tile(height: int, width: int, tile: int) -> None:
    """Every cell is computed once and lands in its place, at whatever size and tile."""
    vae = build(SHALLOW)
    latent = draw(1, 2, height, width)
    images = draw(1, 3, 4 * height, 4 * width)

    torch.testing.assert_close(
        decode_tiled(vae, latent, tile=tile), vae.decode(latent), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        encode_tiled(vae, images, tile=tile).mean, vae.encode(images).mean, rtol=0, atol=1e-12
    )


@torch.no_grad()
def test_float32_tiles_differ_by_rounding_only() -> None:
    """In float32 the largest difference from one pass is below 1e-5."""
    vae = build(DEEP).float()
    latent = draw(1, 2, 50, 45).float()

    torch.testing.assert_close(
        decode_tiled(vae, latent, tile=16), vae.decode(latent), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_a_smaller_halo_leaves_an_error_that_shrinks() -> None:
    """The error in L2 at random weights: a sixth without a halo, below 0.1 % at half of it.

    One cell short of the exact halo it is not yet rounding.
    """
    vae = build(DEEP)
    latent = draw(1, 2, 64, 24)
    expected = vae.decode(latent)
    errors = {
        halo: float((decode_tiled(vae, latent, tile=32, halo=halo) - expected).norm())
        / float(expected.norm())
        for halo in (0, 2, 5, 10, 19, 20)
    }

    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert 0.01 < errors[0] < 0.5
    assert errors[10] < 1e-3
    assert errors[19] > errors[20]
    assert errors[20] < 1e-14


@pytest.mark.parametrize("changes", NEVER_EXACT, ids=str)
@torch.no_grad()
def test_global_layers_have_no_exact_halo(changes: dict[str, object]) -> None:
    """Group norm and attention promise nothing, and even at Sim-VAE's halo their tiles differ."""
    vae = build(DEEP, **changes)
    latent = draw(1, 2, 60, 8)

    with pytest.raises(ValueError, match="sees the whole image"):
        decode_tiled(vae, latent)
    tiled = decode_tiled(vae, latent, tile=30, halo=20)

    assert (tiled - vae.decode(latent)).abs().max() > 1e-6


@pytest.mark.parametrize(("tile", "halo"), [(0, 4), (8, -1)])
def test_impossible_tiles_are_refused(tile: int, halo: int) -> None:
    """The error names both numbers."""
    with pytest.raises(ValueError, match=f"tile={tile}, halo={halo}"):
        decode_tiled(build(SHALLOW), draw(1, 2, 8, 8), tile=tile, halo=halo)


def test_inputs_are_checked_before_they_are_cut() -> None:
    """A wrong size is named as the caller gave it, not as a tile has it."""
    vae = build(SHALLOW)

    with pytest.raises(ValueError, match="102 x 100"):
        encode_tiled(vae, draw(1, 3, 102, 100))
    with pytest.raises(ValueError, match=r"\[1, 3, 8, 8\]"):
        decode_tiled(vae, draw(1, 3, 8, 8))

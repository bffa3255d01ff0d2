"""Sim-VAE against the anchors of the references, diffusers' AutoencoderKL and plain formulas."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.vae.sim_vae import PRESETS, SimVAE, SimVAEConfig, preset
from tests.support.tiny_vae import SD, build, draw_images


def build_meta(name: str) -> SimVAE:
    """Build a preset at full size without memory."""
    with torch.device("meta"):
        return SimVAE(preset(name))


def count(module: torch.nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "total", "encoder", "decoder"),
    [
        ("sim-vae-f8c16", 90_809_379, 39_982_880, 50_826_499),
        ("sim-vae-f8c24", 90_919_987, 40_056_624, 50_863_363),
        ("sim-vae-f8c32", 91_030_595, 40_130_368, 50_900_227),
        ("sim-vae-f8c48", 91_251_811, 40_277_856, 50_973_955),
        ("sim-vae-f8c32-group-norm", 91_030_595, 40_130_368, 50_900_227),
        ("sim-vae-f8c32-pixel-shuffle", 102_534_851, 40_130_368, 62_404_483),
        ("sd-vae-f8c32", 84_046_115, 34_421_696, 49_619_203),
    ],
)
def test_parameter_counts_are_those_of_the_references(
    name: str, total: int, encoder: int, decoder: int
) -> None:
    """Both halves have exactly the reference's parameters."""
    vae = build_meta(name)

    assert (count(vae), count(vae.encoder), count(vae.decoder)) == (total, encoder, decoder)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """List the tensors of the released Sim-VAE-c32, as documented, not as built."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(key: str, width_out: int, width: int) -> None:
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (width_out, width, 3, 3), (width_out,)

    def resnets(key: str, width: int, layers: int) -> None:
        for j in range(layers):
            conv(f"{key}.resnets.{j}.conv1", width, width)
            conv(f"{key}.resnets.{j}.conv2", width, width)
            shapes[f"{key}.resnets.{j}.norm.weight"] = (width,)
            shapes[f"{key}.resnets.{j}.norm.bias"] = (width,)

    conv("encoder.conv_in", 128, 3)
    conv("encoder.conv_out", 64, 512)
    conv("decoder.conv_in", 512, 32)
    conv("decoder.conv_out", 3, 128)
    for half in ("encoder", "decoder"):
        resnets(f"{half}.mid_block", 512, 3)
    for i, width in enumerate((128, 256, 512, 512)):
        resnets(f"encoder.down_blocks.{i}", width, 2)
        resnets(f"decoder.up_blocks.{3 - i}", width, 3)
    for i, (width, width_out) in enumerate([(128, 256), (256, 512), (512, 512)]):
        conv(f"encoder.down_blocks.{i}.downsampler.conv", width_out, width)
        conv(f"decoder.up_blocks.{2 - i}.upsampler.conv", width, width_out)
    return shapes


@pytest.mark.parametrize("name", ["sim-vae-f8c32", "sim-vae-f8c32-group-norm"])
def test_state_has_the_released_keys_and_shapes(name: str) -> None:
    """176 tensors, of which a GroupNorm variant has the same."""
    state = build_meta(name).state_dict()

    assert len(state) == 176
    assert {key: tuple(value.shape) for key, value in state.items()} == published_shapes()


@pytest.mark.parametrize(
    ("name", "side", "encoder", "decoder"),
    [
        ("sim-vae-f8c32", 512, 1.221851, 2.013065),
        ("sim-vae-f8c32", 256, 0.305463, 0.503266),
        ("sd-vae-f8c32", 512, 1.118805, 2.515584),
    ],
)
def test_flops_are_those_of_the_references(
    name: str, side: int, encoder: float, decoder: float
) -> None:
    """Tera-FLOPs per image, a multiply-add counted as two; the SD row to its four digits."""
    vae = build_meta(name)
    with FlopCounterMode(display=False) as encoding:
        posterior = vae.encode(torch.zeros(1, 3, side, side, device="meta"))
    with FlopCounterMode(display=False) as decoding:
        images = vae.decode(posterior.mode())

    assert posterior.mean.shape == posterior.logvar.shape == (1, 32, side // 8, side // 8)
    assert images.shape == (1, 3, side, side)
    assert encoding.get_total_flops() / 1e12 == pytest.approx(encoder, abs=5e-7)
    assert decoding.get_total_flops() / 1e12 == pytest.approx(decoder, abs=5e-7)


def removed(name: str) -> dict[str, Any]:
    """Return the fields in which a preset differs from Sim-VAE f8c32."""
    ours, theirs = (dataclasses.asdict(PRESETS[key]) for key in (name, "sim-vae-f8c32"))
    return {key: value for key, value in ours.items() if value != theirs[key]}


def test_every_row_of_table_2_changes_one_field() -> None:
    """Each ablation removes one modification; SD-VAE is without all of them."""
    rows = [name for name in PRESETS if name.startswith("sim-vae-f8c32-")]

    assert [len(removed(name)) for name in rows] == [1, 1, 1, 1]
    assert removed("sd-vae-f8c32") == SD


def test_every_row_of_table_3_changes_the_channels() -> None:
    """The widths differ in nothing else."""
    for channels in (16, 24, 48):
        assert removed(f"sim-vae-f8c{channels}") == {"latent_channels": channels}


def build_diffusers(config: SimVAEConfig) -> Any:
    """Build diffusers' autoencoder of the same size as an SD-VAE row."""
    from diffusers import AutoencoderKL

    stages = len(config.block_out_channels)
    return AutoencoderKL(
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
    )


def test_sd_row_has_the_state_of_diffusers() -> None:
    """At full size, every key and shape is that of AutoencoderKL with 32 channels."""
    with torch.device("meta"):
        reference = build_diffusers(PRESETS["sd-vae-f8c32"]).state_dict()
    state = build_meta("sd-vae-f8c32").state_dict()

    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in reference.items()
    }


@torch.no_grad()
def test_sd_row_computes_what_diffusers_does() -> None:
    """With the same random weights, moments and images agree with AutoencoderKL's."""
    vae = build("sd_vae").double()
    reference = build_diffusers(vae.config).double()
    reference.load_state_dict(vae.state_dict())
    images = draw_images(2, 40, 64).double()
    expected = reference.encode(images).latent_dist

    posterior = vae.encode(images)

    torch.testing.assert_close(posterior.mean, expected.mean)
    torch.testing.assert_close(posterior.logvar, expected.logvar)
    torch.testing.assert_close(vae.decode(expected.mean), reference.decode(expected.mean).sample)


def test_forward_decodes_the_mode_or_a_sample() -> None:
    """The reconstruction is of the mode, unless a sample is asked for."""
    vae = build()
    images = draw_images()
    posterior = vae.encode(images)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))

    of_mode, _ = vae(images)
    of_sample, _ = vae(images, torch.Generator().manual_seed(5), sample_posterior=True)

    assert torch.equal(of_mode, vae.decode(posterior.mode()))
    assert torch.equal(of_sample, vae.decode(posterior.sample(noise=noise)))


def test_forward_does_not_sample_without_a_generator() -> None:
    """A forgotten generator is an error, not a draw from the global one."""
    with pytest.raises(ValueError, match="noise from `generator`"):
        build()(draw_images(), sample_posterior=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 0}, r"latent_channels\s+Input should be greater than 0"),
        ({"block_out_channels": ()}, r"block_out_channels\s.*at least 1 item"),
        ({"norm_type": "batch_norm"}, "'layer_norm' or 'group_norm'.*'batch_norm'"),
        ({"resize": "bilinear"}, "'pixel_shuffle' or 'sd'.*'bilinear'"),
        ({"norm_type": "group_norm", "norm_groups": 7}, "norm_groups=7 must divide"),
        ({"mid": "self_attention", "mid_layers": 2}, "mid_layers=2: .* give 3"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    """The error names the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        SimVAEConfig(**changes)


def test_unknown_presets_are_refused() -> None:
    """The error lists the known ones."""
    with pytest.raises(ValueError, match="'f8c64'; choose one of sim-vae-f8c32, "):
        preset("f8c64")


def test_wrong_inputs_are_refused() -> None:
    """Encode and decode check what they are given."""
    vae = build()

    with pytest.raises(ValueError, match="multiples of 8"):
        vae.encode(draw_images(1, 36, 32))
    with pytest.raises(ValueError, match=r"expected \[B, 4, h, w\]"):
        vae.decode(torch.zeros(1, 8, 4, 4))

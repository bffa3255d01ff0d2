"""Sim-VAE against the anchors of the references, diffusers' AutoencoderKL and plain formulas."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.sim_vae import PRESETS, SimVAE, SimVAEConfig, preset
from models.vae_blocks import Downsample, SimResBlock

TINY = PRESETS["tiny"]
SD = {"norm_type": "group_norm", "mid": "self_attention", "resize": "sd", "res_block": "sd"}
DESIGNS: dict[str, dict[str, Any]] = {
    "sim": {},
    "group_norm": {"norm_type": "group_norm"},
    "self_attention": {"mid": "self_attention"},
    "pixel_shuffle": {"resize": "pixel_shuffle"},
    "sd_resize": {"resize": "sd"},
    "sd_vae": SD,
}
by_design = pytest.mark.parametrize("design", DESIGNS)


def build(design: str = "sim", *, checkpointing: bool = False, **changes: Any) -> SimVAE:
    """Build a tiny autoencoder with weights that depend on nothing but its configuration."""
    config = dataclasses.replace(TINY, **DESIGNS[design], **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = SimVAE(config, gradient_checkpointing=checkpointing)
        for name, parameter in vae.named_parameters():
            if "norm" in name:  # initial norms are the identity, which would hide a swap
                torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return vae


def build_meta(name: str) -> SimVAE:
    """Build a preset at full size without memory."""
    with torch.device("meta"):
        return SimVAE(preset(name))


def draw_images(batch: int = 1, height: int = 32, width: int = 32) -> Tensor:
    """Draw images in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


def count(module: torch.nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return the error in L2, relative to what is expected."""
    return float((result.float() - expected).norm() / expected.norm())


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


def test_res_block_is_the_papers_formula() -> None:
    """One norm over the channels of each pixel, one activation, an unscaled residual."""
    block = SimResBlock(6, 6, "layer_norm", 1).double()
    torch.nn.init.normal_(block.norm.weight)
    torch.nn.init.normal_(block.norm.bias)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    centred = x - x.mean(dim=1, keepdim=True)
    normed = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    normed = normed * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    h = F.conv2d(normed, block.conv1.weight, block.conv1.bias, padding=1)
    h = h * torch.sigmoid(h)

    expected = x + F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)

    torch.testing.assert_close(block(x), expected)


def test_layer_norm_keeps_pixels_apart() -> None:
    """A bright spot changes Sim-VAE's features near it and no others; a group norm's, all."""
    images = draw_images(1, 320, 320)
    spotted = images.clone()
    spotted[..., :8, :8] = 1.0
    changed = {
        design: (build(design).encode(images).mean - build(design).encode(spotted).mean).abs()
        for design in ("sim", "group_norm")
    }

    assert changed["sim"][..., 20:, 20:].max() == 0
    assert changed["group_norm"][..., 20:, 20:].max() > 0


def test_sd_downsampling_pads_right_and_bottom() -> None:
    """SD's first window starts on the first pixel, Sim-VAE's one before it."""
    x = torch.arange(16.0).view(1, 1, 4, 4)
    outputs = {}
    for symmetric in (False, True):
        layer = Downsample(1, 1, symmetric=symmetric)
        torch.nn.init.zeros_(layer.conv.bias)
        torch.nn.init.zeros_(layer.conv.weight)
        layer.conv.weight.data[0, 0, 0, 0] = 1.0  # the window's top left
        outputs[symmetric] = layer(x).flatten().tolist()

    assert outputs == {False: [0.0, 2.0, 8.0, 10.0], True: [0.0, 0.0, 0.0, 5.0]}


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


@by_design
@torch.no_grad()
def test_a_batch_of_two_is_two_batches_of_one(design: str) -> None:
    """Images of a batch do not see each other."""
    vae = build(design)
    images = draw_images(2)
    together, posterior = vae(images)
    apart = [vae(image[None]) for image in images]

    torch.testing.assert_close(together, torch.cat([each for each, _ in apart]))
    torch.testing.assert_close(posterior.kl(), torch.cat([each.kl() for _, each in apart]))


@by_design
@torch.no_grad()
def test_channels_last_agrees_to_rounding(design: str) -> None:
    """Memory format is a matter of speed: the relative error in L2 is below 1e-5."""
    images = draw_images(2)
    expected, _ = build(design)(images)

    vae = build(design).to(memory_format=torch.channels_last)
    result, _ = vae(images.contiguous(memory_format=torch.channels_last))

    assert relative_error(result, expected) < 1e-5


@by_design
@torch.no_grad()
def test_bfloat16_agrees_to_its_precision(design: str) -> None:
    """In bfloat16, outright or by autocast, the error in L2 is below 2 %; of SD-VAE below 5 %."""
    images = draw_images(2)
    expected, _ = build(design)(images)
    outright, _ = build(design).bfloat16()(images.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        autocast, _ = build(design)(images)

    limit = 0.05 if design == "sd_vae" else 0.02
    assert relative_error(outright, expected) < limit
    assert relative_error(autocast, expected) < limit


@by_design
def test_gradient_checkpointing_changes_no_gradient(design: str) -> None:
    """Recomputed activations give the same gradients, to the bit, for weights and images."""
    gradients = []
    for checkpointing in (False, True):
        vae = build(design, checkpointing=checkpointing)
        images = draw_images().requires_grad_()
        reconstruction, posterior = vae(images)
        (reconstruction.square().mean() + 1e-3 * posterior.kl().mean()).backward()
        gradients.append([images.grad, *(parameter.grad for parameter in vae.parameters())])

    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_gradient_checkpointing_keeps_less() -> None:
    """What autograd keeps for the backward pass shrinks to less than half."""
    kept = {}
    for checkpointing in (False, True):
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        vae = build(checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output, _ = vae(draw_images(1, 64, 64))
        kept[checkpointing] = sum(sizes.values())
        del output

    assert kept[True] < kept[False] / 2


@by_design
def test_every_parameter_is_used(design: str) -> None:
    """Loss and KL reach every weight, so data-parallel training never waits for one."""
    vae = build(design)
    reconstruction, posterior = vae(draw_images(), torch.Generator(), sample_posterior=True)
    (reconstruction.square().mean() + posterior.kl().mean()).backward()

    assert [name for name, value in vae.named_parameters() if value.grad is None] == []


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


@by_design
@torch.no_grad()
def test_halves_compile_without_a_graph_break(design: str) -> None:
    """torch.compile captures encoder and decoder whole, and computes the same."""
    vae = build(design)
    images = draw_images()
    expected, _ = vae(images)
    torch.compiler.reset()
    vae.encoder.compile(backend="aot_eager", fullgraph=True)
    vae.decoder.compile(backend="aot_eager", fullgraph=True)

    torch.testing.assert_close(vae(images)[0], expected, rtol=0, atol=5e-6)


@pytest.mark.slow
def test_inductor_trains_the_whole_model() -> None:
    """Compiled by the default backend, forward and backward agree with eager."""
    images = draw_images()
    gradients = []
    for compiled in (False, True):
        vae = build()
        run = torch.compile(vae, fullgraph=True) if compiled else vae
        reconstruction, posterior = run(images)
        (reconstruction.square().mean() + 1e-3 * posterior.kl().mean()).backward()
        gradients.append([parameter.grad for parameter in vae.parameters()])

    for plain, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 0}, "latent_channels=0: must be at least 1"),
        ({"block_out_channels": ()}, r"block_out_channels=\(\)"),
        ({"norm_type": "batch_norm"}, "'batch_norm': choose one of .*'layer_norm'"),
        ({"resize": "bilinear"}, "'bilinear': choose one of .*'pixel_shuffle'"),
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

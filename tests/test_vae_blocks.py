"""The layers against plain formulas; precision, memory formats, checkpointing, compilation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vae.blocks import (
    Downsample,
    PixelShuffleUpsample,
    SDResBlock,
    SelfAttention,
    SimResBlock,
    Upsample,
)
from tests.support.tiny_vae import build, by_design, draw_images, relative_error


def test_res_block_is_the_papers_formula() -> None:
    """One norm over the channels of each pixel, one activation, an unscaled residual."""
    generator = torch.Generator().manual_seed(0)
    block = SimResBlock(6, 6, "layer_norm", 1).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=generator)
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


@by_design
@torch.no_grad()
def test_a_batch_of_two_is_two_batches_of_one(design: str) -> None:
    """Images of a batch do not see each other: the relative error in L2 is below 1e-5."""
    vae = build(design)
    images = draw_images(2)
    together, posterior = vae(images)
    apart = [vae(image[None]) for image in images]

    assert relative_error(together, torch.cat([each for each, _ in apart])) < 1e-5
    assert relative_error(posterior.kl(), torch.cat([each.kl() for _, each in apart])) < 1e-5


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


@pytest.mark.parametrize(
    "design",
    ["sim", "pixel_shuffle", "sd_vae", "group_norm", "self_attention", "sd_resize"],
)
@pytest.mark.slow  # each kind of block is compiled below
@torch.no_grad()
def test_halves_compile_without_a_graph_break(design: str) -> None:
    """torch.compile captures encoder and decoder whole and once, and computes the same."""
    vae = build(design)
    images = draw_images()
    expected, _ = vae(images)
    torch.compiler.reset()
    vae.encoder.compile(backend="eager", fullgraph=True)
    vae.decoder.compile(backend="eager", fullgraph=True)

    torch.testing.assert_close(vae(images)[0], expected, rtol=0, atol=5e-6)
    with torch._dynamo.config.patch(error_on_recompile=True):
        vae(-images)


@by_design
def test_a_pass_reads_no_value(design: str) -> None:
    """On the meta device, where no value can be read, all is made; a GPU's host need not wait."""
    with torch.device("meta"):
        vae = build(design)
        posterior = vae.encode(torch.empty(1, 3, 32, 32))
        image = vae.decode(posterior.sample(noise=torch.empty_like(posterior.mean)))

    assert image.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "block",
    [
        SimResBlock(8, 8, "layer_norm", 1),
        SDResBlock(8, 16, "group_norm", 2),
        SelfAttention(8, "layer_norm", 1),
        Downsample(8, 8, symmetric=False),
        Upsample(8, 8),
        PixelShuffleUpsample(8, 8),
    ],
    ids=lambda block: type(block).__name__,
)
def test_each_block_compiles_once_as_one_graph(block: nn.Module) -> None:
    """Every kind of block is captured whole under autocast, and other values are no news."""
    torch.compiler.reset()
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))

    with torch._dynamo.config.patch(error_on_recompile=True), torch.autocast("cpu", torch.bfloat16):
        for values in (x, -x):
            assert torch.equal(compiled(values), block(values))


def test_a_compiled_model_samples() -> None:
    """The draw breaks the graph and changes nothing: the generator is honoured."""
    vae = build()
    arguments = (draw_images(), torch.Generator().manual_seed(5))
    expected, _ = vae(*arguments, sample_posterior=True)
    arguments[1].manual_seed(5)

    result, _ = torch.compile(vae, backend="eager")(*arguments, sample_posterior=True)

    assert relative_error(result, expected) < 1e-5


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

"""LooUFormer against the reference's numbers, keys and formulas."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.velocity.hdit import HDiT, HDiTConfig
from models.velocity.looformer import PRESETS, LooUFormer, LooUFormerConfig
from models.velocity.neighborhood import tiled_flops, window_flops
from tests.support.velocity_reference import looformer, randomize

TINY = PRESETS["tiny"]
STRIDED = {"downsample": "strided_conv", "downsample_kernel": 3}
SHUFFLE = {"upsample": "conv_shuffle", "upsample_kernel": 1}


def build(config: LooUFormerConfig = TINY, seed: int = 0) -> LooUFormer:
    """Build a network whose every parameter is random, the zero-initialised ones too."""
    return randomize(LooUFormer(config), seed)


def draw(*shape: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Draw x_t and t."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)


def count(network: type[nn.Module], config: object) -> int:
    """Count the parameters, frozen ones too."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network(config).parameters())


def published_keys() -> Iterator[tuple[str, tuple[int, ...]]]:
    """List the authors' keys and shapes, as the layout describes them."""
    yield "time_proj.weight", (384,)
    yield "timestep_embedder.weight", (768, 768)
    yield from ((f"mapping.{name}_norm.scale", (768,)) for name in ("in", "out"))
    for block in range(2):
        yield f"mapping.blocks.{block}.norm.scale", (768,)
        yield f"mapping.blocks.{block}.up_proj.weight", (4608, 768)
        yield f"mapping.blocks.{block}.down_proj.weight", (768, 2304)
    yield from (("proj_in.proj.weight", (256, 32, 3, 3)), ("proj_in.proj.bias", (256,)))
    yield from (("proj_out.proj.weight", (32, 256, 3, 3)), ("proj_out.proj.bias", (32,)))
    yield "out_norm.weight", (256,)
    levels = [(f"{way}_blocks.{i}", 2 + 2 * i, 256 << i) for way in ("down", "up") for i in (0, 1)]
    for level, depth, d in [*levels, ("mid_block", 6, 1024)]:
        for block in (f"{level}.{number}" for number in range(depth)):
            for name, rows in (("attn.qkv_proj", 3 * d), ("ff.project_in", 6 * d)):
                yield f"{block}.{name}.conv.weight", (rows, d, 1, 1)
                yield f"{block}.{name}.dwconv.weight", (rows, 1, 3, 3)
                yield f"{block}.{name}.dwconv.bias", (rows,)
            yield f"{block}.attn.pos_emb.freqs", (d // 64, 8)
            for name, columns in (("attn.out_proj", d), ("ff.down_proj", 3 * d)):
                yield f"{block}.{name}.weight", (d, columns, 1, 1)
                yield f"{block}.{name}.bias", (d,)
            for name in ("norm1", "norm2"):
                yield f"{block}.{name}.linear.weight", (d, 768)
                yield f"{block}.{name}.linear.bias", (d,)
    for level, d in ((0, 256), (1, 512)):
        yield f"downs.{level}.conv.weight", (2 * d, 4 * d, 1, 1)
        yield f"downs.{level}.conv.bias", (2 * d,)
        yield f"ups.{level}.conv.weight", (d, 2 * d, 3, 3)
        yield f"ups.{level}.conv.bias", (d,)
        yield f"ups.{level}.fac", (1,)


def test_the_recommended_variant_has_the_authors_keys_and_shapes() -> None:
    """150,700,194 parameters, 384 of them frozen; 295 entries, 1,408 values in buffers."""
    with torch.device("meta"):
        network = LooUFormer(PRESETS["latent-c32"])
    parameters = list(network.parameters())
    state = network.state_dict()
    assert sum(parameter.numel() for parameter in parameters) == 150_700_194
    assert sum(p.numel() for p in parameters if p.requires_grad) == 150_699_810
    assert sum(buffer.numel() for buffer in network.buffers()) == 1_408
    assert len(state) == 295
    assert {name: tuple(value.shape) for name, value in state.items()} == dict(published_keys())


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("latent-c16", 150.626),
        ("latent-c24", 150.663),
        ("latent-c32", 150.700),
        ("latent-c48", 150.774),
    ],
)
def test_latent_channels_hardly_change_the_size(preset: str, millions: float) -> None:
    """Every preset has the size that its line says."""
    assert round(count(LooUFormer, PRESETS[preset]) / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        (STRIDED, 153.977),  # the defaults of the authors' class
        ({}, 150.700),
        (STRIDED | SHUFFLE, 150.702),
        (SHUFFLE, 147.426),
    ],
)
def test_resizing_layers_give_the_sizes_of_the_table(
    fields: dict[str, Any], millions: float
) -> None:
    """Each way down and up, at widths 256/512/1024 and depths 2/4/6."""
    assert round(count(LooUFormer, LooUFormerConfig(**fields)) / 1e6, 3) == millions


def test_candidates_for_the_papers_151_2_million() -> None:
    """Those with k-diffusion's augmentation projection fall in [151.2, 151.3); ours does not."""
    augmentation = 768**2
    ours = count(LooUFormer, LooUFormerConfig())
    assert round((ours + augmentation) / 1e6, 3) == 151.290
    plain = count(HDiT, HDiTConfig(in_channels=32, patch_size=1, depths=(2, 4, 6)))
    depthwise = sum(blocks * 9 * d * 10 for blocks, d in ((4, 256), (8, 512), (6, 1024)))
    ends = 2 * (9 - 1) * 32 * 256 + 256 + 32  # 3 x 3 in place of 1 x 1, and biases
    splits = sum((9 - 4) * 2 * d * d for d in (256, 512))  # 3 x 3 in place of 1 x 1 to 4 d
    assert round((plain + depthwise + ends + splits) / 1e6, 3) == 151.242


def test_operations_at_512_px() -> None:
    """0.151592 TFLOP and 0.001644 T for the windows, which the tiles compute at 4 times that."""
    with torch.device("meta"):
        network = LooUFormer(PRESETS["latent-c32"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*(torch.empty(shape, device="meta") for shape in [(1, 32, 64, 64), (1,)]))
    maps = [(64, 256)] * 4 + [(32, 512)] * 8  # blocks of both directions
    windows = sum(window_flops(side, side, width, 7) for side, width in maps)
    tiles = sum(tiled_flops(side, side, width, 7) for side, width in maps)
    assert round(windows / 1e12, 6) == 0.001644
    assert round((counter.get_total_flops() - tiles) / 1e12, 6) == 0.151592
    assert tiles == 4 * windows


@pytest.mark.parametrize("cosine_similarity", [True, False])
def test_the_network_is_its_formulas(cosine_similarity: bool) -> None:
    """Three levels, a non-square map, against dense formulas from the keys, in float64."""
    config = LooUFormerConfig(
        in_channels=3,
        widths=(16, 32, 32),
        depths=(1, 2, 1),
        attentions=("neighborhood", "neighborhood", "global"),
        head_dim=16,
        kernel_size=3,
        mapping_width=12,
        cosine_similarity=cosine_similarity,
    )
    network = build(config).double()
    x_t, t = (x.double() for x in draw(2, 3, 8, 12))
    expected = looformer(network.state_dict(), x_t, t, windows=(3, 3, None))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(network(x_t, t), expected, rtol=1e-6, atol=1e-6)


def test_the_velocity_starts_at_zero_only_if_asked() -> None:
    """The authors' default does not start at zero; zero_init does."""
    x_t, t = draw(1, 4, 8, 8)
    assert LooUFormer(TINY)(x_t, t).abs().max() > 0
    assert LooUFormer(replace(TINY, zero_init=True))(x_t, t).abs().max() == 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        STRIDED,
        SHUFFLE,
        {"downsample": "conv_unshuffle"},
        {"downsample_kernel": 3},
        {"depthwise": False},
        {"bias": False},
        {"cosine_similarity": True},
        {"condition_channels": 3},
    ],
)
def test_every_variant_runs_and_learns(fields: dict[str, Any]) -> None:
    """A velocity of x_t's shape, and a gradient for each trained parameter."""
    network, (x_t, t) = build(replace(TINY, **fields)), draw(1, 4, 8, 12)
    cond = torch.ones(1, 3, 8, 12) if "condition_channels" in fields else None
    velocity = network(x_t, t, cond)
    velocity.square().mean().backward()
    assert velocity.shape == x_t.shape
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


def test_a_batch_of_two_is_two_of_one() -> None:
    """Samples do not see each other."""
    network, (x_t, t) = build(), draw(2, 4, 16, 8)
    both = network(x_t, t)
    for i in range(2):
        one = network(x_t[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], one, rtol=1e-5, atol=1e-5)


def test_memory_format_and_bfloat16_stay_within_bounds() -> None:
    """Channels-last within 1e-4; bfloat16 autocast within 4 percent, in root mean square."""
    network, (x_t, t) = build(), draw(2, 4, 16, 16)
    exact = network(x_t, t)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    velocity = last(x_t.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(velocity, exact, rtol=1e-4, atol=1e-4)
    assert velocity.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x_t, t)
    error = (rounded.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.04


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    """The backward pass repeats the forward pass, and nothing else."""
    network, (x_t, t) = build(), draw(1, 4, 16, 16)
    gradients = []
    for network.activation_checkpointing in (False, True):
        network.zero_grad()
        network(x_t, t).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_torch_compile_gives_the_same_velocity() -> None:
    """As one graph, without a break."""
    network, (x_t, t) = build(), draw(2, 4, 16, 16)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True)
    torch.testing.assert_close(compiled(x_t, t), network(x_t, t), rtol=1e-4, atol=1e-4)


def test_nan_stays_in_its_sample() -> None:
    """It is not hidden: that sample's velocity is NaN, the other's is not."""
    network, (x_t, t) = build(), draw(2, 4, 8, 8)
    x_t[0, 0, 0, 0] = math.nan
    velocity = network(x_t, t)
    assert velocity[0].isnan().any()
    assert velocity[1].isfinite().all()


def test_wrong_inputs_are_refused() -> None:
    """Another VAE's latents, and maps that two levels cannot halve."""
    network = LooUFormer(TINY)
    with pytest.raises(ValueError, match=r"x_t \[1, 16, 8, 8\].*\[B, 4, H, W\]"):
        network(*draw(1, 16, 8, 8))
    with pytest.raises(ValueError, match=r"9 x 8 is not divisible by 2.*pad"):
        network(*draw(1, 4, 9, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"downsample": "pool"}, r"downsample\s+Input should be 'strided_conv'.*'pool'"),
        ({"upsample": "bilinear"}, r"upsample\s+Input should be 'nearest_conv'.*'bilinear'"),
        ({"upsample_kernel": 5}, r"upsample_kernel\s+Input should be 1 or 3"),
        ({"downsample": "strided_conv"}, "downsample_kernel=1: a strided convolution needs 3"),
        ({"depths": (1,)}, "one entry per level"),
    ],
)
def test_wrong_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    """Each error names the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        replace(TINY, **fields)

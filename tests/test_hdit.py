"""HDiT against the reference's numbers, keys and formulas."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import CheckpointError
from models.velocity.hdit import PRESETS, HDiT, HDiTConfig, load_pmrf
from models.velocity.neighborhood import tiled_flops, window_flops
from tests.support.velocity_reference import hdit, randomize

TINY = PRESETS["tiny"]


def build(config: HDiTConfig = TINY, seed: int = 0) -> HDiT:
    """Build a network whose every parameter is random, the zero-initialised ones too."""
    return randomize(HDiT(config), seed)


def draw(*shape: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Draw x_t and t."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)


def on_meta(config: HDiTConfig) -> HDiT:
    """Build a network without memory."""
    with torch.device("meta"):
        return HDiT(config)


def count(network: nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def published_keys() -> Iterator[str]:
    """List PMRF's keys: parameters in the order in which its averages are saved, then buffers."""
    levels = [("down_levels.0", 2), ("down_levels.1", 2), ("up_levels.0", 2), ("up_levels.1", 2)]
    blocks = [f"{name}.{b}" for name, depth in [*levels, ("mid_level", 8)] for b in range(depth)]
    yield from ("patch_in.proj.weight", "time_in_proj.weight", "aug_in_proj.weight")
    yield "mapping.in_norm.scale"
    for block in range(2):
        for name in ("norm.scale", "up_proj.weight", "down_proj.weight"):
            yield f"mapping.blocks.{block}.{name}"
    yield "mapping.out_norm.scale"
    for block in blocks:
        for name in ("scale", "norm.linear.weight", "qkv_proj.weight", "out_proj.weight"):
            yield f"{block}.self_attn.{name}"
        for name in ("norm.linear.weight", "up_proj.weight", "down_proj.weight"):
            yield f"{block}.ff.{name}"
    yield from ("merges.0.proj.weight", "merges.1.proj.weight")
    yield from ("splits.0.fac", "splits.0.proj.weight", "splits.1.fac", "splits.1.proj.weight")
    yield from ("out_norm.scale", "patch_out.proj.weight")
    yield from ("time_emb.weight", "aug_emb.weight")
    yield from (f"{block}.self_attn.pos_emb.freqs" for block in blocks)


def test_pmrf_has_its_published_size_and_keys() -> None:
    """160,460,210 parameters, 149 entries, 5,248 values in buffers; names and order of PMRF."""
    network = on_meta(PRESETS["pmrf-512"])
    parameters = [name for name, _ in network.named_parameters()]
    buffers = [name for name, _ in network.named_buffers()]
    assert count(network) == 160_460_210
    assert len(network.state_dict()) == 149
    assert sum(buffer.numel() for buffer in network.buffers()) == 5_248
    assert [*parameters, *buffers] == list(published_keys())


def test_pmrf_has_its_published_shapes() -> None:
    """Those that the layout names, and the size that Table 4 counts, without the augmentation."""
    state = on_meta(PRESETS["pmrf-512"]).state_dict()
    shapes = {
        "patch_in.proj.weight": (256, 48),
        "time_emb.weight": (384, 1),
        "aug_emb.weight": (384, 9),
        "mapping.blocks.1.up_proj.weight": (4608, 768),
        "mapping.blocks.1.down_proj.weight": (768, 2304),
        "down_levels.1.0.self_attn.scale": (8,),
        "mid_level.7.self_attn.pos_emb.freqs": (16, 8),
        "up_levels.0.1.ff.up_proj.weight": (1536, 256),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert 160_460_210 - state["aug_in_proj.weight"].numel() == 159_870_386


def test_the_other_sizes() -> None:
    """XL2 has 121.5 M parameters; on latents of 32 channels with depths 2/4/6, 146.821 M."""
    assert round(count(on_meta(PRESETS["pmrf-256"])) / 1e6, 1) == 121.5
    latent = on_meta(HDiTConfig(in_channels=32, patch_size=1, depths=(2, 4, 6)))
    assert round(count(latent) / 1e6, 3) == 146.821


def test_operations_of_pmrf_at_512_px() -> None:
    """0.499080 TFLOP and 0.004933 T for the windows, which the tiles compute at 4 times that."""
    network = on_meta(PRESETS["pmrf-512"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*(torch.empty(shape, device="meta") for shape in [(1, 3, 512, 512), (1,)]))
    maps = [(128, 256), (128, 256), (64, 512), (64, 512)] * 2  # blocks of both directions
    windows = sum(window_flops(side, side, width, 7) for side, width in maps)
    tiles = sum(tiled_flops(side, side, width, 7) for side, width in maps)
    assert round(windows / 1e12, 6) == 0.004933
    assert round((counter.get_total_flops() - tiles) / 1e12, 6) == 0.499080
    assert tiles == 4 * windows


@pytest.mark.parametrize("cosine_similarity", [True, False])
def test_the_network_is_its_formulas(cosine_similarity: bool) -> None:
    """Three levels, a non-square image, against dense formulas from the keys, in float64."""
    config = HDiTConfig(
        widths=(16, 32, 32),
        depths=(1, 2, 1),
        attentions=("neighborhood", "neighborhood", "global"),
        head_dim=16,
        kernel_size=3,
        mapping_width=12,
        patch_size=2,
        cosine_similarity=cosine_similarity,
    )
    network = build(config).double()
    x_t, t = (x.double() for x in draw(2, 3, 16, 24))
    expected = hdit(network.state_dict(), x_t, t, windows=(3, 3, None), patch=2)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(network(x_t, t), expected, rtol=1e-6, atol=1e-6)


def test_the_velocity_starts_at_zero() -> None:
    """As PMRF's does; without zero_init it does not."""
    x_t, t = draw(1, 3, 8, 8)
    assert HDiT(TINY)(x_t, t).abs().max() == 0
    without = replace(TINY, zero_init=False)
    assert HDiT(without)(x_t, t).abs().max() > 0


def test_a_batch_of_two_is_two_of_one() -> None:
    """Samples do not see each other."""
    network, (x_t, t) = build(), draw(2, 3, 16, 8)
    both = network(x_t, t)
    for i in range(2):
        one = network(x_t[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], one, rtol=1e-5, atol=1e-5)


def test_memory_format_and_bfloat16_stay_within_bounds() -> None:
    """Channels-last within 1e-5; bfloat16 autocast within 4 percent, in root mean square."""
    network, (x_t, t) = build(), draw(2, 3, 16, 16)
    exact = network(x_t, t)
    last = network(x_t.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(last, exact, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x_t, t)
    error = (rounded.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.04


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    """And keeps less for the backward pass."""
    network, (x_t, t) = build(), draw(1, 3, 16, 16)
    results = []
    for network.activation_checkpointing in (False, True):
        kept: list[int] = []
        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x
        ):
            loss = network(x_t, t).square().mean()
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        assert all(gradient is not None for gradient in gradients)
        results.append((gradients, sum(kept)))
    (plain, all_kept), (repeated, few_kept) = results
    torch.testing.assert_close(plain, repeated, rtol=1e-5, atol=1e-7)
    assert few_kept < all_kept / 2


@pytest.mark.slow
def test_torch_compile_gives_the_same_velocity_and_gradients() -> None:
    """As one graph, without a break."""
    network, (x_t, t) = build(), draw(2, 3, 16, 16)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True)
    for model in (network, compiled):
        model(x_t, t).square().mean().backward()
    torch.testing.assert_close(compiled(x_t, t), network(x_t, t), rtol=1e-4, atol=1e-4)
    for theirs, ours in zip(compiled.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-4)


def test_a_condition_is_concatenated() -> None:
    """A network of 3 + 2 channels sees both: the first projection has columns for each."""
    config = replace(TINY, condition_channels=2)
    network, (x_t, t), (cond, _) = build(config), draw(1, 3, 8, 8), draw(1, 2, 8, 8, seed=2)
    before = network(x_t, t, cond)
    assert before.shape == x_t.shape
    assert not torch.equal(network(x_t, t, cond + 1), before)
    with pytest.raises(ValueError, match=r"cond None.*condition_channels=2 needs \[1, 2, 8, 8\]"):
        network(x_t, t)


@pytest.mark.parametrize(
    ("x_t", "t", "cond", "message"),
    [
        ((1, 4, 8, 8), (1,), None, r"x_t \[1, 4, 8, 8\].*\[B, 3, H, W\]"),
        ((3, 8, 8), (3,), None, r"takes \[B, 3, H, W\]"),
        ((1, 3, 8, 10), (1,), None, r"8 x 10 is not divisible by 4.*pad"),
        ((1, 3, 0, 8), (1,), None, r"0 x 8 is not divisible"),
        ((2, 3, 8, 8), (1,), None, r"t \[1\].*\[2\]"),
        ((1, 3, 8, 8), (), None, r"t \[\] torch.float32"),
        ((1, 3, 8, 8), (1,), (1, 3, 8, 8), r"unconditional.*condition_channels=3"),
    ],
)
def test_wrong_inputs_are_refused(
    x_t: tuple[int, ...], t: tuple[int, ...], cond: tuple[int, ...] | None, message: str
) -> None:
    """Each error says what came and what this network takes."""
    with pytest.raises(ValueError, match=message):
        HDiT(TINY)(torch.zeros(x_t), torch.zeros(t), None if cond is None else torch.zeros(cond))


def test_nan_stays_in_its_sample() -> None:
    """It is not hidden: that sample's velocity is NaN, the other's is not."""
    network, (x_t, t) = build(), draw(2, 3, 8, 8)
    x_t[0, 0, 0, 0] = math.nan
    velocity = network(x_t, t)
    assert velocity[0].isnan().any()
    assert velocity[1].isfinite().all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("widths", (32,), "one entry per level"),
        ("attentions", ("neighborhood", "window"), r"attentions\.1\s+.*'global'.*'window'"),
        ("head_dim", 12, "multiple of 8"),
        ("widths", (32, 40), "divide each width"),
        ("kernel_size", 4, "odd"),
        ("mapping_width", 7, "even"),
        ("depths", (0, 1), r"depths\.0\s+Input should be greater than 0"),
        ("in_channels", 0, r"in_channels\s+Input should be greater than 0"),
        ("patch_size", 0, r"patch_size\s+Input should be greater than 0"),
    ],
)
def test_wrong_configurations_are_refused(field: str, value: Any, message: str) -> None:
    """Each error names the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        replace(TINY, **{field: value})


def lightning(network: HDiT, averaged: HDiT) -> dict[str, Any]:
    """Lay out a checkpoint as PMRF's training writes it."""
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    shadow = [parameter.detach() for parameter in averaged.parameters()]
    return {
        "state_dict": state | {"mmse_model.norm.weight": torch.ones(3), "fid.total": torch.ones(1)},
        "ema": {"decay": 0.9999, "num_updates": 5, "shadow_params": shadow, "collected_params": []},
        "hyper_parameters": {"arch": "hdit_ImageNet256Sp4", "betas": (0.9, 0.95)},
    }


def test_published_checkpoints_load(tmp_path: Path) -> None:
    """Lightning, averaged or raw, and the hub's safetensors; buffers are the checkpoint's."""
    raw, averaged = build(seed=1), build(seed=2)
    averaged.load_state_dict(averaged.state_dict() | dict(raw.named_buffers()))
    torch.save(lightning(raw, averaged), tmp_path / "pmrf.ckpt")
    save_file({f"model.{k}": v for k, v in raw.state_dict().items()}, tmp_path / "hub.safetensors")
    x_t, t = draw(1, 3, 8, 8)
    for name, use_average, expected in (
        ("pmrf.ckpt", True, averaged),
        ("pmrf.ckpt", False, raw),
        ("hub.safetensors", True, raw),
    ):
        network = HDiT(TINY)
        load_pmrf(network, tmp_path / name, averaged=use_average)
        assert torch.equal(network(x_t, t), expected(x_t, t))


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    """Neither the averages nor the raw weights of a wider network load, and nothing changes."""
    wide = build(replace(TINY, widths=(32, 128)))
    torch.save(lightning(wide, wide), tmp_path / "pmrf.ckpt")
    network = build()
    before = copy.deepcopy(network.state_dict())
    for averaged in (True, False):
        with pytest.raises(CheckpointError, match="HDiT"):
            load_pmrf(network, tmp_path / "pmrf.ckpt", averaged=averaged)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

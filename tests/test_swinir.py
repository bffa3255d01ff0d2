"""SwinIR: the published layout and cost, the values of an independent reference, its bounds."""

import dataclasses
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.predictor.swinir import PRESETS, SwinIR, SwinIRConfig, load_predictor, preset
from models.predictor.window_attention import shift_mask

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def model() -> SwinIR:
    """Build a tiny network in which every layer matters to the output, attention too."""
    model = SwinIR(TINY).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        value.copy_(torch.randn(value.shape, generator=generator))
        if value.ndim == 1:
            value.mul_(0.1).add_(float("norm" in name and name.endswith("weight")))
        elif "bias_table" not in name:
            value.div_(value[0].numel() ** 0.5)
    return model


def images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Draw images in [0, 1]."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# An independent reference: plain loops over windows that simply start half a window earlier and are
# cut off by the border. Nothing is rolled, masked or batched; everything is float64.


def window_starts(length: int, size: int, shift: int) -> list[slice]:
    """Cut an axis into windows; with a shift the first and the last are halves."""
    edges = sorted({0, length, *range(shift, length, size)})
    return [slice(a, b) for a, b in pairwise(edges)]


def reference_attention(x: Tensor, weights: dict[str, Tensor], shift: int) -> Tensor:
    """Attend within each window of one map [h, w, C], head by head."""
    size, heads = TINY.window_size, TINY.heads
    out = torch.empty_like(x)
    width = x.shape[-1] // heads
    for rows in window_starts(x.shape[0], size, shift):
        for columns in window_starts(x.shape[1], size, shift):
            tokens = x[rows, columns].reshape(-1, x.shape[-1])
            ys, xs = (
                grid.flatten()
                for grid in torch.meshgrid(
                    torch.arange(rows.stop - rows.start),
                    torch.arange(columns.stop - columns.start),
                    indexing="ij",
                )
            )
            q, k, v = (tokens @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]).chunk(
                3, -1
            )
            mixed = []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                dy, dx = ys[:, None] - ys[None], xs[:, None] - xs[None]
                row = (dy + size - 1) * (2 * size - 1) + dx + size - 1
                bias = weights["attn.relative_position_bias_table"][row, head]
                scores = q[:, part] @ k[:, part].T / width**0.5 + bias
                mixed.append(scores.softmax(dim=-1) @ v[:, part])
            projected = torch.cat(mixed, -1) @ weights["attn.proj.weight"].T
            shape = out[rows, columns].shape
            out[rows, columns] = (projected + weights["attn.proj.bias"]).reshape(shape)
    return out


def reference(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """Run the whole network on one image [3, H, W] whose sides need no padding."""
    state = {name: value.double() for name, value in state.items()}

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x[None], state[f"{name}.weight"], state[f"{name}.bias"], padding=1)[0]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    mean = torch.tensor([0.4488, 0.4371, 0.4040], dtype=torch.float64)[:, None, None]
    r, (_, height, width) = TINY.unshuffle, image.shape
    cells = (image.double() - mean).reshape(3, height // r, r, width // r, r)
    shallow = conv("conv_first.1", cells.permute(0, 2, 4, 1, 3).flatten(0, 2))
    tokens = norm("patch_embed.norm", shallow.movedim(0, -1))
    for layer, depth in enumerate(TINY.depths):
        x = tokens
        for block in range(depth):
            at = f"layers.{layer}.residual_group.blocks.{block}"
            own = {k.removeprefix(at + "."): v for k, v in state.items() if k.startswith(at + ".")}
            shift = TINY.window_size // 2 if block % 2 else 0
            x = x + reference_attention(norm(f"{at}.norm1", x), own, shift)
            x = x + linear(f"{at}.mlp.fc2", F.gelu(linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", x))))
        tokens = tokens + conv(f"layers.{layer}.conv", x.movedim(-1, 0)).movedim(0, -1)
    deep = conv("conv_after_body", norm("norm", tokens).movedim(-1, 0))
    x = F.leaky_relu(conv("conv_before_upsample.0", shallow + deep), 0.01)
    for name in ("conv_up1", "conv_up2"):
        x = F.leaky_relu(conv(name, x.repeat_interleave(2, 1).repeat_interleave(2, 2)), 0.2)
    return conv("conv_last", F.leaky_relu(conv("conv_hr", x), 0.2)) + mean


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 16), (32, 48)])
def test_values_equal_an_independent_reference(model: SwinIR, height: int, width: int) -> None:
    """With stored masks and with computed ones, one window or many, square or not."""
    lq = images(1, height, width)

    difference = model(lq)[0] - reference(model.state_dict(), lq[0])

    assert difference.abs().max() < 1e-5


def test_sides_are_padded_by_reflection_and_cropped(model: SwinIR) -> None:
    """Sizes between whole windows give the crop of the reflected image's result."""
    lq = images(1, 27, 41)
    padded = F.pad(lq, (0, 7, 0, 5), mode="reflect")

    assert torch.equal(model(lq), model(padded)[:, :, :27, :41])


def expected_keys(depths: tuple[int, ...], ups: int) -> set[str]:
    """List the published key layout."""
    ends = [f"conv_up{number}" for number in range(1, ups + 1)]
    modules = [
        "conv_first.1",
        "patch_embed.norm",
        "norm",
        "conv_after_body",
        "conv_hr",
        "conv_last",
    ]
    modules += ["conv_before_upsample.0", *ends]
    keys = set()
    for layer, depth in enumerate(depths):
        modules.append(f"layers.{layer}.conv")
        for number in range(depth):
            block = f"layers.{layer}.residual_group.blocks.{number}"
            modules += [f"{block}.{part}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")]
            modules += [f"{block}.attn.qkv", f"{block}.attn.proj"]
            keys |= {f"{block}.attn.relative_position_{kind}" for kind in ("bias_table", "index")}
            keys |= {f"{block}.attn_mask"} if number % 2 else set()
    return keys | {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("name", "parameters", "entries", "tflop"),
    [("swinir_L", 15_792_587, 732, 0.181478), ("swinir_M", 4_741_007, 465, 0.086322)],
)
def test_published_networks_have_the_published_layout_and_cost(
    name: str, parameters: int, entries: int, tflop: float
) -> None:
    """Parameters, state entries, every key and shape, FLOPs of a 512 x 512 image."""
    config = preset(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = SwinIR(config)
        network(torch.rand(1, 3, 512, 512))
    state = network.state_dict()

    assert sum(value.numel() for value in network.parameters()) == parameters
    assert len(state) == entries
    assert set(state) == expected_keys(config.depths, ups=3)
    assert counter.get_total_flops() / 1e12 == pytest.approx(tflop, abs=1e-6)


def test_the_large_network_has_the_published_shapes() -> None:
    """The shapes that the checkpoint's file has, buffers included."""
    with torch.device("meta"):
        state = {k: list(v.shape) for k, v in SwinIR(PRESETS["swinir_L"]).state_dict().items()}
    block = "layers.7.residual_group.blocks.5."

    assert {
        "conv_first.1.weight": [180, 192, 3, 3],
        f"{block}attn.relative_position_bias_table": [225, 6],
        f"{block}attn.relative_position_index": [64, 64],
        f"{block}attn.qkv.weight": [540, 180],
        f"{block}attn_mask": [64, 64, 64],
        f"{block}mlp.fc1.weight": [360, 180],
        "layers.7.conv.weight": [180, 180, 3, 3],
        "conv_before_upsample.0.weight": [64, 180, 3, 3],
        "conv_up3.weight": [64, 64, 3, 3],
        "conv_last.weight": [3, 64, 3, 3],
    }.items() <= state.items()


def test_a_batch_of_two_equals_two_batches_of_one(model: SwinIR) -> None:
    """Images do not see each other."""
    lq = images(2, 32, 48)

    together, alone = model(lq), torch.cat([model(lq[:1]), model(lq[1:])])

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_channels_last_and_bfloat16_stay_within_bounds(model: SwinIR) -> None:
    """Memory format moves values by rounding of float32, bfloat16 by less than 0.02 of [0, 1]."""
    lq = images(2, 64, 64)
    expected = model(lq)
    last = SwinIR(TINY).eval().to(memory_format=torch.channels_last)
    last.load_state_dict(model.state_dict())
    half = SwinIR(TINY).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)

    with torch.no_grad():
        torch.testing.assert_close(
            last(lq.contiguous(memory_format=torch.channels_last)), expected, rtol=0, atol=1e-5
        )
        assert (half(lq.bfloat16()).float() - expected).abs().max() < 0.02
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(lq).float() - expected).abs().max() < 0.02


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
@torch.no_grad()  # which is left, whatever a graph that fails does not undo
def test_the_posterior_mean_compiles_once_as_one_graph(dynamic: bool) -> None:
    """torch.compile meets nothing that it cannot trace; other values, or open sides, are no news.

    The check of values is inside the graph.
    """
    config = SwinIRConfig(
        embed_dim=8, depths=(2,), heads=2, window_size=2, unshuffle=2, image_size=16
    )
    model = SwinIR(config).eval().requires_grad_(False)
    torch.compiler.reset()
    compiled = torch.compile(model.posterior_mean, backend="eager", fullgraph=True, dynamic=dynamic)
    others = [images(2, 20, 24)] if dynamic else []

    with torch._dynamo.config.patch(error_on_recompile=True):
        for lq in (images(2, 12, 14), images(2, 12, 14, seed=1), *others):
            torch.testing.assert_close(compiled(lq), model.posterior_mean(lq), rtol=0, atol=2e-6)
        with pytest.raises(RuntimeError, match=r"expected finite values in \[0, 1\]: map uint8"):
            compiled(2 * lq)


def test_a_group_compiles_once_as_one_graph(model: SwinIR) -> None:
    """A plain block and a shifted one are captured whole; other values are no news."""
    group, tokens = model.layers[0], torch.rand(1, 8, 8, TINY.embed_dim)
    mask = shift_mask(8, 8, TINY.window_size)
    torch.compiler.reset()
    compiled = torch.compile(group, backend="eager", fullgraph=True)

    with torch._dynamo.config.patch(error_on_recompile=True), torch.autocast("cpu", torch.bfloat16):
        for values in (tokens, -tokens):
            assert torch.equal(compiled(values, mask), group(values, mask))


@pytest.mark.parametrize("side", [64, 48])
def test_a_prediction_reads_no_value(side: int) -> None:
    """On the meta device, where no value can be read, it is made; a GPU's host need not wait."""
    with torch.device("meta"):
        prediction = SwinIR(TINY).posterior_mean(torch.empty(1, 3, side, side))

    assert prediction.shape == (1, 3, side, side)


def test_gradients_reach_every_parameter_and_the_input() -> None:
    """The network can be trained: with an L2 loss it would be the posterior mean itself."""
    model = SwinIR(TINY)
    lq = images(1, 32, 32).requires_grad_()

    model(lq).square().mean().backward()

    assert all(value.grad is not None and value.grad.any() for value in model.parameters())
    assert lq.grad is not None
    assert lq.grad.any()


def test_predictions_are_clipped_and_without_gradient(model: SwinIR) -> None:
    """The raw output leaves [0, 1]; the posterior mean does not, and equals it inside."""
    lq = images(1, 32, 32).requires_grad_()
    raw, prediction = model(lq), model.posterior_mean(lq)

    assert raw.min() < 0 or raw.max() > 1
    assert torch.equal(prediction, raw.clamp(0, 1))
    assert not prediction.requires_grad


@pytest.mark.parametrize(
    ("lq", "error", "said"),
    [
        (torch.rand(1, 1, 32, 32), ValueError, r"\[1, 1, 32, 32\]; expected \[B, 3, H, W\]"),
        (torch.rand(3, 32, 32), ValueError, r"\[3, 32, 32\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "torch.uint8; .* x / 255"),
        (torch.rand(1, 3, 8, 32), ValueError, "8 x 32.*more than 8 pixels"),
        (torch.rand(1, 3, 32, 32) * 2 - 1, ValueError, r"expected finite values in \[0, 1\]"),
        (torch.full((1, 3, 32, 32), torch.nan), ValueError, "nan"),
    ],
)
def test_wrong_input_is_refused(
    model: SwinIR, lq: Tensor, error: type[Exception], said: str
) -> None:
    """The error says what came, what is expected and how to get there."""
    with pytest.raises(error, match=said):
        model.posterior_mean(lq)


FORMS = {
    "DifFace's trainer": lambda state: {"state_dict": state, "iters_start": 300_000},
    "of DataParallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "bare": lambda state: state,
    "params_ema": lambda state: {"params_ema": state},
    "ema": lambda state: {"ema": state},
    "params": lambda state: {"params": state},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_container_loads(model: SwinIR, tmp_path: Path, form: str) -> None:
    """Frozen and in evaluation mode, the network predicts what the saved one did."""
    path = tmp_path / "swinir_restoration512_L1.pth"
    torch.save(FORMS[form](model.state_dict()), path)

    loaded = load_predictor(path, TINY)

    assert torch.equal(loaded(images(1, 32, 32)), model(images(1, 32, 32)))
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())


def test_missing_weights_say_where_to_get_them(tmp_path: Path) -> None:
    """The error names the place, the file, its release and its licence."""
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_predictor(tmp_path / "weights.pth")

    for part in (
        str(tmp_path / "weights.pth"),
        "https://github.com/zsyOAOA/DifFace/releases/download/V1.0/swinir_restoration512_L1.pth",
        "NTU S-Lab 1.0, non-commercial",
    ):
        assert part in str(caught.value)


def test_another_architecture_is_refused(model: SwinIR, tmp_path: Path) -> None:
    """A network of other depth or width is named by its missing keys and its shapes."""
    torch.save(model.state_dict(), tmp_path / "a.pth")
    wider = SwinIRConfig(embed_dim=48, depths=(2, 4), heads=2, window_size=4, unshuffle=4)

    with pytest.raises(CheckpointError) as caught:
        load_predictor(tmp_path / "a.pth", wider)

    for part in (r"embed_dim=48", r"missing \(", r"qkv.bias \[72\] instead of \[144\]"):
        assert re.search(part, str(caught.value))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"embed_dim": 100}, "heads=6 must divide embed_dim=100"),
        ({"depths": ()}, r"depths\s.*at least 1 item"),
        ({"depths": (6, 0)}, r"depths\.1\s+Input should be greater than 0"),
        ({"window_size": 7}, "window_size=7"),
        ({"unshuffle": 6}, "power of two"),
        ({"image_size": 500}, "image_size=500.*= 64"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields: dict[str, int], said: str) -> None:
    """The error names the field, its value and what it must be."""
    with pytest.raises(ValueError, match=said):
        SwinIRConfig(**fields)  # type: ignore[arg-type]  # wrong on purpose


def test_an_unknown_preset_is_refused() -> None:
    """The error lists the known ones."""
    with pytest.raises(ValueError, match="'swinir_S'; choose one of swinir_L, swinir_M, tiny"):
        preset("swinir_S")


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    """And keeps less for the backward pass."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deep = dataclasses.replace(TINY, depths=(4,) * 6)  # so that the groups weigh most
        network, lq = SwinIR(deep), torch.rand(1, 3, 64, 64)
    results = []
    for network.activation_checkpointing in (False, True):
        kept: list[int] = []
        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x
        ):
            loss = network(lq).square().mean()
        loss.backward()
        results.append(([value.grad.clone() for value in network.parameters()], sum(kept)))
    (plain, all_kept), (repeated, few_kept) = results

    torch.testing.assert_close(plain, repeated, rtol=1e-5, atol=1e-7)
    assert few_kept < all_kept / 2

"""Window attention: which tokens see each other, and how their offsets are numbered."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.predictor import window_attention
from models.predictor.swinir import PRESETS, SwinIR
from models.predictor.window_attention import (
    WindowAttention,
    relative_position_index,
    shift_mask,
    spare_channels,
)


@settings(max_examples=20)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), size=st.sampled_from([2, 4, 6]))
def test_the_mask_admits_exactly_what_the_border_leaves_together(
    rows: int, columns: int, size: int
) -> None:
    """Two tokens of a rolled window see each other if a window that does not wrap holds both."""
    h, w, half = rows * size, columns * size, size // 2
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    window = 100 * ((y - half) // size) + (x - half) // size  # -1 before the first, no wrapping
    rolled = window.roll((-half, -half), dims=(0, 1))

    mask = shift_mask(h, w, size)

    for index in range(rows * columns):
        top, left = size * (index // columns), size * (index % columns)
        tokens = rolled[top : top + size, left : left + size].flatten()
        assert torch.equal(mask[index] == 0, tokens[:, None] == tokens[None])
    assert set(mask.unique().tolist()) <= {0.0, -100.0}


def test_a_one_window_map_has_four_regions() -> None:
    """Where one window is the whole map, its quarters are apart."""
    assert shift_mask(4, 4, 4).eq(0).sum() == 4 * 4 * 4


def test_offsets_are_numbered_as_published() -> None:
    """Entry (i, j) of a 2 x 2 window is 3 (dy + 1) + dx + 1."""
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]

    assert relative_position_index(2).tolist() == expected


def test_attention_does_not_cross_windows_or_the_border() -> None:
    """In one shifted block, a changed token moves its own cut-off window and nothing else."""
    model = SwinIR(PRESETS["tiny"])
    block = model.layers[0].residual_group["blocks"][1]
    tokens = torch.randn(
        1, 16, 16, model.config.embed_dim, generator=torch.Generator().manual_seed(0)
    )
    changed = tokens.clone()
    changed[0, 0, 15, 0] += 1.0

    moved = (block(tokens, None) != block(changed, None)).any(dim=-1)[0]

    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:2, 14:] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize(("width", "spare"), [(30, 2), (20, 4), (32, 0), (64, 0)])
def test_heads_are_filled_up_to_multiples_of_8_on_cuda_alone(width: int, spare: int) -> None:
    """DifFace's heads of 30 channels become 32 there; on a CPU all stay as they are."""
    assert spare_channels(width, torch.device("cuda")) == spare
    assert spare_channels(width, torch.device("cpu")) == 0


@pytest.mark.parametrize("shifted", [False, True])
def test_channels_of_zeros_change_neither_values_nor_gradients(
    shifted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled up from 30 to 32 channels, heads attend as before, in float64 to 1e-12."""
    generator = torch.Generator().manual_seed(0)
    attention = WindowAttention(60, heads=2, window_size=4).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    windows = torch.randn(2, 4, 16, 60, dtype=torch.float64, generator=generator)
    mask = shift_mask(8, 8, 4).double() if shifted else None

    def results() -> list[Tensor]:
        inputs = windows.clone().requires_grad_()
        out = attention(inputs, mask)
        return [out, *torch.autograd.grad(out.square().sum(), [inputs, *attention.parameters()])]

    expected = results()
    monkeypatch.setattr(window_attention, "ALIGNED_DEVICES", ("cpu",))
    torch.testing.assert_close(results(), expected, rtol=1e-12, atol=1e-12)


class Seen(TorchFunctionMode):
    """Notes what attention is given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        if func is F.scaled_dot_product_attention:
            self.qkv, self.options = args, kwargs
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("block", [0, 1])
def test_attention_is_given_what_cudas_fused_kernel_takes(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths and strides are multiples of 8, types are one, rows have no gaps, q, k and v no copy.

    That is what PyTorch asks for before it takes the memory-efficient kernel, the only fused one
    with a bias. The scale is that of the 30 channels which are not zero.
    """
    monkeypatch.setattr(window_attention, "ALIGNED_DEVICES", ("meta",))
    with torch.device("meta"):
        model = SwinIR(dataclasses.replace(PRESETS["swinir_L"], depths=(2,))).bfloat16()
        tokens = torch.empty(2, 64, 64, 180, dtype=torch.bfloat16)

    with Seen() as seen:
        model.layers[0].residual_group["blocks"][block](tokens, None)

    for x in (*seen.qkv, seen.options["attn_mask"]):
        assert x.dtype == torch.bfloat16
        assert x.stride(-1) == 1
        assert not any(stride % 8 for stride in x.stride()[:-1])
    assert [list(x.shape) for x in seen.qkv] == [[128, 6, 64, 32]] * 3
    assert len({x.untyped_storage()._cdata for x in seen.qkv}) == 1
    assert seen.options["scale"] == 30**-0.5

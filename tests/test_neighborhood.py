"""Neighbourhood attention against its definition, and what it costs."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import recomputation
from models.velocity import neighborhood
from models.velocity.neighborhood import (
    neighborhood_attention,
    tiled_flops,
    window_flops,
    window_starts,
)
from tests.support.velocity_reference import dense_attention, window_mask


def draw(*shape: int, seed: int = 0, **kwargs: Any) -> list[Tensor]:
    """Draw queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, **kwargs) for _ in range(3)]


def assert_same(one: Tensor, other: Tensor) -> None:
    """Assert that two results agree to the rounding of float32: kernels depend on the shape."""
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate a weighted sum of the output, with the same weights each time."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    return torch.autograd.grad(output.flatten() @ weights, inputs)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                # An expanded tensor has more elements than memory behind it.
                self.elements = max(
                    self.elements, value.untyped_storage().nbytes() // value.itemsize
                )
        return result


def test_windows_are_clamped_inside_the_map() -> None:
    """For 8 positions and a window of 7 the windows start at 0 0 0 0 1 1 1 1."""
    assert window_starts(8, 7).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@settings(max_examples=40)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
    heads=st.integers(1, 3),
    batch=st.integers(1, 2),
    scale=st.sampled_from([None, 1.0]),
)
def test_values_and_gradients_are_those_of_dense_masked_attention(
    height: int, width: int, kernel_size: int, heads: int, batch: int, scale: float | None
) -> None:
    """On maps of any size, odd, non-square, smaller than a tile or than the window, in float64."""
    inputs = draw(batch, heads, height, width, 8, dtype=torch.float64, requires_grad=True)
    ours = neighborhood_attention(*inputs, kernel_size, scale)
    mask = window_mask(height, width, kernel_size)
    dense = dense_attention(*inputs, mask, 8**-0.5 if scale is None else scale)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(ours, inputs), gradients(dense, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def test_every_query_sees_exactly_49_keys() -> None:
    """With equal scores and one-hot values, an output is 1/49 in its 7 x 7 window, else 0."""
    H, W = 11, 19
    zeros = torch.zeros(1, 1, H, W, H * W)
    one_hot = torch.eye(H * W).view(1, 1, H, W, H * W)
    weights = neighborhood_attention(zeros, zeros, one_hot, 7)[0, 0].flatten(0, 1)
    torch.testing.assert_close(weights, window_mask(H, W, 7) / 49)


def test_a_map_smaller_than_the_window_is_seen_whole() -> None:
    """On 5 x 4 positions a window of 7 is global attention."""
    q, k, v = draw(1, 2, 5, 4, 8)
    torch.testing.assert_close(
        neighborhood_attention(q, k, v, 7), dense_attention(q, k, v, None, 8**-0.5)
    )


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of tiles at a time, or all at once."""
    inputs = draw(1, 2, 20, 17, 8)
    monkeypatch.setattr(neighborhood, "CHUNK", 1)
    by_row = neighborhood_attention(*inputs, 7)
    monkeypatch.setattr(neighborhood, "CHUNK", 1 << 30)
    assert_same(by_row, neighborhood_attention(*inputs, 7))


def test_a_batch_of_two_is_two_of_one() -> None:
    """Samples do not see each other."""
    q, k, v = draw(2, 2, 12, 9, 8)
    both = neighborhood_attention(q, k, v, 5)
    for i in range(2):
        one = neighborhood_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], 5)
        assert_same(both[i : i + 1], one)


def test_memory_layout_does_not_matter() -> None:
    """Channels-first tensors, as a convolution gives them."""
    inputs = draw(1, 2, 10, 9, 8)
    permuted = [x.movedim(-1, 2).contiguous().movedim(2, -1) for x in inputs]
    assert not permuted[0].is_contiguous()
    assert_same(neighborhood_attention(*inputs, 7), neighborhood_attention(*permuted, 7))


def test_bfloat16_is_within_its_rounding() -> None:
    """Outputs of size 1 differ from float64 by at most 0.02, five of bfloat16's half steps."""
    exact = draw(1, 2, 16, 16, 16, dtype=torch.float64)
    rounded = neighborhood_attention(*(x.bfloat16() for x in exact), 7)
    error = (rounded.double() - neighborhood_attention(*exact, 7)).abs().max()
    assert rounded.dtype == torch.bfloat16
    assert error < 0.02


def test_nan_stays_in_its_sample() -> None:
    """A NaN key makes its surroundings NaN, does not vanish, and leaves the other sample alone."""
    q, k, v = draw(2, 1, 32, 8, 8)
    k[0, 0, 4, 4] = math.nan
    out = neighborhood_attention(q, k, v, 3)
    assert out[0, :, 3:6, 3:6].isnan().all()
    assert out[0, :, 16:].isfinite().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_tiles_cost_four_times_the_definition(size: int) -> None:
    """At k = 7, on multiples of 8, the counted operations are 4 x 4 N 49 d."""
    with FlopCounterMode(display=False) as counter:
        neighborhood_attention(*(torch.empty(1, 4, size, size, 64, device="meta"),) * 3, 7)
    assert window_flops(size, size, 256, 7) == 4 * size**2 * 49 * 256
    assert counter.get_total_flops() == tiled_flops(size, size, 256, 7)
    assert tiled_flops(size, size, 256, 7) == 4 * window_flops(size, size, 256, 7)


def test_no_tensor_grows_faster_than_the_map() -> None:
    """Of forward and backward, the largest is 208 per token (the mask), at any size."""
    for size in (32, 64, 96):
        inputs = draw(1, 1, size, size, 8, requires_grad=True)
        with LargestTensor() as largest:
            gradients(neighborhood_attention(*inputs, 7), inputs)
        assert largest.elements == 208 * size**2


def test_the_backward_pass_keeps_no_copy_per_window() -> None:
    """What is kept is below 6 times q (two strips of 1.75, and q), against 2 x 49 copies."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    q, k, v = draw(1, 4, 64, 64, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = neighborhood_attention(q, k, v, 7)
    mask = 196 * 64 * 64
    assert out.requires_grad
    assert sum(kept.values()) - mask < 6 * q.nbytes


def test_nothing_is_prepared_for_a_backward_pass_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without gradients the result is the same, to the bit, and no `checkpoint` is called.

    The first call of it loads the compiler of PyTorch, two seconds of a process that restores.
    """
    q, k, v = draw(1, 2, 9, 9, 8)
    expected = neighborhood_attention(q, k, v, 7)
    calls: list[object] = []
    monkeypatch.setattr(recomputation, "checkpoint", lambda *inputs, **_: calls.append(inputs))
    with torch.no_grad():
        found = neighborhood_attention(q, k, v, 7)

    assert torch.equal(found, expected)
    assert not calls


@pytest.mark.parametrize("kernel_size", [0, 6, -1])
def test_an_even_window_is_refused(kernel_size: int) -> None:
    """The error names what came, and an odd number."""
    with pytest.raises(ValueError, match=rf"kernel_size={kernel_size}.*odd"):
        neighborhood_attention(*draw(1, 1, 8, 8, 8), kernel_size)


def test_unequal_shapes_are_refused() -> None:
    """The error lists all three shapes."""
    q, k, v = draw(1, 1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"q \[1, 1, 8, 8, 8\], k \[1, 1, 8, 7, 8\]"):
        neighborhood_attention(q, k[:, :, :, :7], v, 3)
    with pytest.raises(ValueError, match="expected three equal shapes"):
        neighborhood_attention(q[0], k[0], v[0], 3)


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives() -> None:
    """Values and gradients in float32, within its rounding."""
    inputs = draw(2, 2, 20, 17, 16, requires_grad=True)
    moved = [x.detach().cuda().requires_grad_() for x in inputs]
    cpu, cuda = neighborhood_attention(*inputs, 7), neighborhood_attention(*moved, 7)
    torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-5, atol=1e-5)
    for there, here in zip(gradients(cuda, moved), gradients(cpu, inputs), strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)

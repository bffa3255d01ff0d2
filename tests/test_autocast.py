"""Operators that keep the precision of their map: values, and types under CUDA's own autocast."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.autocast import GroupNorm, LayerNorm, layer_norm, repeat_pixels

C = 8  # channels
EPS = 1e-5
Operator = Callable[[Tensor, Tensor, Tensor], Tensor]


def module(kind: type[nn.Module], *size: int) -> Operator:
    """Make a function of map, weight and bias of a layer."""

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.device("meta"):
            layer = kind(*size)
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    return run


# Ours, and PyTorch's that has the same values. The last axis of a map has C values, and the second.
OPERATORS: dict[str, tuple[Operator, Operator]] = {
    "layer_norm": (
        lambda x, weight, bias: layer_norm(x, weight, bias, EPS),
        lambda x, weight, bias: F.layer_norm(x, (C,), weight, bias, EPS),
    ),
    "LayerNorm": (module(LayerNorm, C), module(nn.LayerNorm, C)),
    "GroupNorm": (module(GroupNorm, 2, C), module(nn.GroupNorm, 2, C)),
    "repeat_pixels": (
        lambda x, weight, bias: repeat_pixels(x),
        lambda x, weight, bias: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    ),
}
by_operator = pytest.mark.parametrize("name", OPERATORS)


def arguments(dtype: torch.dtype = torch.float32, mean: float = 0.0) -> tuple[Tensor, ...]:
    """Draw a map [2, C, 4, C], and a weight and a bias in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, C, 4, C), (C,), (C,)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return (x + mean).to(dtype), 1 + 0.1 * weight, bias


@pytest.fixture
def cuda_autocast() -> Iterator[None]:
    """Enter CUDA's autocast for bfloat16; `torch.autocast` refuses to where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    yield
    torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    torch.set_autocast_enabled("cuda", False)


@by_operator
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_float32_keeps_its_bits(name: str, form: torch.memory_format) -> None:
    """Values and gradients are those of PyTorch's operators, also in the midst of autocast."""
    results = []
    for operator in OPERATORS[name]:
        inputs = [x.requires_grad_() for x in arguments()]
        with torch.autocast("cpu", torch.bfloat16, enabled=operator is OPERATORS[name][0]):
            out = operator(inputs[0].contiguous(memory_format=form), *inputs[1:])
        out.square().sum().backward()
        results.append([out, *(x.grad for x in inputs)])

    for ours, plain in zip(*results, strict=True):
        assert ours is plain is None or torch.equal(ours, plain)


@by_operator
def test_a_half_map_stays_half_under_cudas_autocast(name: str, cuda_autocast: None) -> None:
    """Where CUDA's autocast makes PyTorch's operators return float32, ours return bfloat16."""
    with FakeTensorMode():
        shapes = (2, C, 4, C), (C,), (C,)
        x, weight, bias = (torch.empty(shape, device="cuda") for shape in shapes)
        ours, plain = (operator(x.bfloat16(), weight, bias) for operator in OPERATORS[name])

    assert (ours.dtype, plain.dtype) == (torch.bfloat16, torch.float32)
    assert ours.shape == plain.shape
    assert torch.is_autocast_enabled("cuda")


@by_operator
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_half_result_is_the_float32_one_rounded(name: str, half: torch.dtype) -> None:
    """Mean and variance are not rounded on the way, even of values far from zero.

    What is rounded are the weight, the bias and the result, each to half a unit in the last place.
    """
    x, weight, bias = arguments(half, mean=20.0)
    weight, bias = weight.to(half), bias.to(half)
    expected = OPERATORS[name][1](x.double(), weight.double(), bias.double())

    result = OPERATORS[name][0](x, weight.float(), bias.float())

    assert result.dtype == half
    limit = 0.51 * torch.finfo(half).eps
    torch.testing.assert_close(result.double(), expected, rtol=limit, atol=1e-6)

"""Counts of what the full-size networks would start on CUDA, and the rules they are counted by."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.benchmarks.roofline import measures, table
from tests.support.counted_passes import GUARDED, PASSES, allowed, in_bf16, row
from tests.support.cuda_counts import Gpu, Kernel, Part, Traced, fused_kernels, traced
from tests.support.cuda_rules import LISTS, attention_path, on_cuda

RENEW = 'if the change is meant: python -m tests.support.counted_passes "why the counts changed"'
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize("name", GUARDED)
def test_counts_are_those_of_the_table(name: str) -> None:
    """Kernels, float32 maps, copies and casts neither rise unseen nor fall without being noted."""
    expected = allowed()[name]

    assert row(PASSES[name].traced().counts(), expected["reason"]) == expected, RENEW


class TypesOfResults(TorchDispatchMode):
    """Notes the type of what every operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operator and note it, unless it is a view or a question."""
        made = func(*args, **(kwargs or {}))
        first = made[0] if isinstance(made, tuple) else made
        if isinstance(first, Tensor) and not func.is_view:
            self.found.append((str(func), first.dtype))
        return made


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    # of a bf16 map x [2, 8, 4, 8], a float32 map y of the same shape, a float32 weight w [8, 8]
    "linear": lambda x, y, w: F.linear(y, w),
    "matmul": lambda x, y, w: torch.matmul(y.flatten(2), y.flatten(2).mT),
    "operator @": lambda x, y, w: w @ w,
    "conv2d": lambda x, y, w: F.conv2d(y, w.view(8, 8, 1, 1), w.sum(0)),
    "einsum": lambda x, y, w: torch.einsum("bchw,cd->bdhw", y, w),
    "bmm": lambda x, y, w: torch.bmm(x.flatten(2), y.flatten(2).mT),
    "layer_norm": lambda x, y, w: F.layer_norm(x, (8,)),
    "group_norm": lambda x, y, w: F.group_norm(x, 2),
    "softmax": lambda x, y, w: F.softmax(x, dim=-1),
    "method softmax": lambda x, y, w: x.softmax(-1),
    "softmax of a type": lambda x, y, w: x.softmax(-1, dtype=torch.bfloat16),
    "sum": lambda x, y, w: x.sum((2, 3)),
    "method sum of all": lambda x, y, w: x.sum(),
    "cumsum": lambda x, y, w: x.cumsum(0),
    "mean": lambda x, y, w: x.mean((2, 3)),
    "pow": lambda x, y, w: x**2,
    "number to a power": lambda x, y, w: 2**x,
    "square": lambda x, y, w: x.square(),
    "rsqrt": lambda x, y, w: x.rsqrt(),
    "sqrt": lambda x, y, w: x.sqrt(),
    "exp": lambda x, y, w: x.exp(),
    "exp in place": lambda x, y, w: x.exp_(),
    "log": lambda x, y, w: torch.log(x),
    "norm": lambda x, y, w: x.norm(dim=1),
    "vector norm": lambda x, y, w: torch.linalg.vector_norm(x, dim=1),
    "cosine_similarity": lambda x, y, w: F.cosine_similarity(x, x),
    "nearest": lambda x, y, w: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "nearest by default": lambda x, y, w: F.interpolate(x, scale_factor=2.0),
    "bilinear": lambda x, y, w: F.interpolate(x, size=(8, 16), mode="bilinear", antialias=True),
    "area": lambda x, y, w: F.interpolate(x, size=(2, 4), mode="area"),
    "l1_loss": lambda x, y, w: F.l1_loss(x, x),
    "mse_loss": lambda x, y, w: F.mse_loss(x, x),
    "addcmul": lambda x, y, w: torch.addcmul(x, y, x),
    "cat": lambda x, y, w: torch.cat((x, y)),
    "stack": lambda x, y, w: torch.stack((x, y)),
    "lerp": lambda x, y, w: torch.lerp(x, x, x),
    "gelu": lambda x, y, w: F.gelu(x),
    "silu": lambda x, y, w: F.silu(x),
    "add": lambda x, y, w: x + y,
    "double": lambda x, y, w: F.linear(y.double(), w.double()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_casts_are_those_of_pytorchs_own_autocast(name: str) -> None:
    """PyTorch's autocast for CUDA, on fake tensors of CUDA, makes the same types as the rules."""
    shapes = ((2, 8, 4, 8), BF16), ((2, 8, 4, 8), FP32), ((8, 8), FP32)
    with torch.no_grad(), on_cuda(), TypesOfResults() as ours, torch.autocast("cuda", BF16):
        FUNCTIONS[name](*(torch.empty(shape, dtype=kind, device="cuda") for shape, kind in shapes))
    with torch.no_grad(), FakeTensorMode(), TypesOfResults() as theirs:
        given = [torch.empty(shape, dtype=kind, device="cuda") for shape, kind in shapes]
        torch.set_autocast_dtype("cuda", BF16)
        torch.set_autocast_enabled("cuda", True)
        try:
            FUNCTIONS[name](*given)
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()

    assert sorted(map(str, ours.found)) == sorted(map(str, theirs.found))


def test_the_lists_are_pytorchs() -> None:
    """The header of this PyTorch is read whole: each list has what the documentation names."""
    assert LISTS["linear"] == LISTS["scaled_dot_product_attention"] == "LOWER_PRECISION_FP"
    assert LISTS["layer_norm"] == LISTS["_upsample_bicubic2d_aa"] == LISTS["pow"] == "FP32"
    assert LISTS["softmax"] == LISTS["sum"] == "FP32_SET_OPT_DTYPE"
    assert LISTS["addcdiv"] == LISTS["scatter_add"] == "PROMOTE"
    assert len(LISTS) > 100


@pytest.mark.parametrize(
    ("dtype", "width", "mask", "expected"),
    [
        (BF16, 64, None, "flash"),
        (FP16, 30, None, "flash"),
        (BF16, 512, None, "efficient"),
        (FP32, 64, None, "efficient"),
        (BF16, 64, "keys", "efficient"),
        (BF16, 30, "keys", "math"),
        (BF16, 64, "queries", "math"),
        (FP32, 30, None, "math"),
    ],
)
def test_attention_takes_cudas_path(
    dtype: torch.dtype, width: int, mask: str | None, expected: str
) -> None:
    """Masks rule flash out, and widths that are not whole vectors the efficient kernel."""
    q = torch.empty(2, 3, 16, width, dtype=dtype, device="meta")
    scores = torch.empty(16, 16, dtype=dtype, device="meta")
    scores = None if mask is None else scores if mask == "keys" else scores.mT

    assert attention_path(q, q, q, scores)[0] == expected


def test_attention_of_channels_that_lie_apart_is_not_fused() -> None:
    """Heads cut from a map whose channels come first are refused by both kernels."""
    apart = torch.empty(2, 3, 64, 16, dtype=BF16, device="meta").mT

    path, reason = attention_path(apart, apart, apart, None)

    assert path == "math"
    assert "side by side" in reason


def run(network: nn.Module, *shape: int, last: bool = False, backward: bool = False) -> Traced:
    """Count a pass of a network under autocast."""
    network.to("meta", memory_format=torch.channels_last if last else torch.preserve_format)
    x = torch.empty(shape, device="meta", requires_grad=backward)
    x = x.to(memory_format=torch.channels_last) if last else x
    return traced(lambda: in_bf16(lambda: network(x).sum() if backward else network(x)), network)


def names(found: Traced) -> list[str]:
    """Return what its kernels are called, casts apart."""
    return [kernel.name for kernel in found.kernels if kernel.name != "_to_copy"]


def test_a_convolution_adds_its_bias_by_itself_unless_it_is_per_channel() -> None:
    """What cuDNN convolves gets its bias afterwards; PyTorch's own kernel in NCHW has it."""
    dense, each = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8)

    assert names(run(dense, 1, 8, 8, 8)) == ["convolution", "bias of convolution"]
    assert names(run(each, 1, 8, 8, 8)) == ["convolution"]
    assert names(run(each, 1, 8, 8, 8, last=True)) == ["convolution", "bias of convolution"]


def test_a_convolution_backwards_is_a_kernel_for_each_gradient() -> None:
    """Each product costs what the forward pass costs, also per channel."""
    for groups in (1, 8):
        found = run(nn.Conv2d(8, 8, 3, groups=groups), 1, 8, 8, 8, backward=True)
        products = [kernel.flops for kernel in found.kernels if kernel.flops]

        assert products == [2 * 36 * 8 * 8 // groups * 9] * 3
        assert "convolution backward, bias" in names(found)


def test_what_is_not_in_the_convolutions_format_is_copied() -> None:
    """A weight in NCHW before an input in channels-last memory costs a copy in each pass."""
    network = nn.Conv2d(8, 8, 3, bias=False)
    x = torch.empty(1, 8, 8, 8, device="meta").to(memory_format=torch.channels_last)
    network.to("meta")

    assert traced(lambda: network(x), network, None).counts().layout_copies == 1
    assert run(network, 1, 8, 8, 8, last=True).counts().layout_copies == 0


def test_a_trained_weight_is_cast_once_and_a_frozen_one_at_every_use() -> None:
    """PyTorch keeps the casts of weights that are trained, until autocast ends."""
    layer = nn.Linear(8, 8)
    twice = nn.Sequential(layer, layer)

    assert run(twice, 2, 8).counts().weight_casts == 2
    assert run(twice.requires_grad_(False), 2, 8).counts().weight_casts == 4


def test_float32_maps_are_large_results_beside_weights() -> None:
    """A layer norm of a map of 1 MiB in float32 is one; the map's cast before it another."""
    network = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))

    assert run(network, 4096, 64).counts().float32_maps == 2
    assert run(network, 4095, 64).counts().float32_maps == 0


def test_an_rms_norm_is_one_kernel_and_two_backwards() -> None:
    """Where types and memory format allow it; without a weight one is enough backwards."""
    weighted = names(run(nn.RMSNorm(64), 2, 16, 64, backward=True))
    plain = names(run(nn.RMSNorm(64, elementwise_affine=False), 2, 16, 64, backward=True))

    assert [sum("rms_norm" in name for name in found) for found in (weighted, plain)] == [3, 2]


def test_a_network_that_waits_for_a_value_cannot_be_counted() -> None:
    """Nothing is computed, so a forward pass that reads a value back ends with an error."""

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.max().item()

    with pytest.raises(RuntimeError, match="meta"):
        run(Waiting(), 2, 8)


def test_tensors_lie_on_cuda_and_autocast_knows_it() -> None:
    """A network may ask where it runs, turn autocast off there, and make tensors there."""
    x = torch.empty(4, 4, device="meta")
    with on_cuda(), torch.autocast("cuda", BF16):
        made = torch.ones(4, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            wide = x @ x
        found = x.device.type, made.is_cuda, (x @ x).dtype, wide.dtype

    assert found == ("cuda", True, BF16, FP32)


def test_a_kernel_takes_the_longest_of_its_operations_its_bytes_and_its_start() -> None:
    """Seconds of three kernels, each bound by another of the GPU's numbers."""
    gpu = Gpu(flops=1e12, bandwidth=1e9, launch=1e-6, flops_float32=1e11)
    small = Part(0, 1)
    kernels = [
        Kernel("product", (small,), (small,), flops=10**12),
        Kernel("in float32", (small,), (small,), flops=10**12, is_half=False),
        Kernel("copy", (Part(1, 10**9),), (Part(2, 10**9),)),
        Kernel("tiny", (small,), (small,)),
    ]

    assert gpu.eager(kernels) == pytest.approx(1 + 10 + 2 + 1e-6)
    assert gpu.products(kernels) == pytest.approx(11)


def test_fusing_joins_what_hangs_together_between_two_products() -> None:
    """A chain reads its source once and writes its end; what is apart stays apart."""
    source, middle, end, other, made = (Part(number, 100) for number in range(5))
    product = Kernel("product", (end,), (made,), flops=1)
    chain = Kernel("square", (source,), (middle,)), Kernel("add", (middle, source), (end,))
    apart = Kernel("fill", (), (other,))

    joined = fused_kernels([chain[0], apart, chain[1], product, Kernel("last", (made,), ())])

    assert [kernel.name for kernel in joined] == ["fused", "fused", "product", "fused"]
    assert sorted(kernel.size for kernel in joined[:2]) == [100, 200]  # of five times 100


def test_the_table_has_a_line_for_each_pass() -> None:
    """What is run several times is told for all of them."""
    linear = run(nn.Linear(8, 8), 2, 8)
    found = {"velocity": measures(PASSES["velocity"], linear, Gpu())}

    assert table(found).splitlines()[2].startswith("| 25 velocity evaluations, batch 1 | 100 |")

"""What CUDA's kernels want of the velocity networks, told by tensors without a GPU.

How many kernels there are is counted elsewhere; here are the reasons that the fused ones are taken.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.velocity import hdit, looformer
from models.velocity.hdit import HDiT
from models.velocity.hourglass import level_geometry
from models.velocity.layers import rms_norm, rms_normalize
from models.velocity.looformer import LooUFormer
from models.velocity.neighborhood import MASK_ALIGNMENT

TINY = {"looformer": looformer.PRESETS["tiny"], "hdit": hdit.PRESETS["tiny"]}
CLASSES: dict[str, type[LooUFormer] | type[HDiT]] = {"looformer": LooUFormer, "hdit": HDiT}
BLOCKS: dict[str, Any] = {
    "looformer": lambda level: looformer.Block(TINY["looformer"], level),
    "hdit": lambda level: hdit.Block(TINY["hdit"], level),
}
by_network = pytest.mark.parametrize("name", CLASSES)


def build(name: str) -> Any:
    """Build a tiny network whose blocks are not the identity."""
    torch.manual_seed(0)
    return CLASSES[name](replace(TINY[name], zero_init=False))


def draw(name: str, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Draw x_t and t."""
    return torch.randn(batch, TINY[name].in_channels, 16, 16), torch.rand(batch)


class Attentions(TorchFunctionMode):
    """Notes the queries, keys, values and mask of each attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.calls.append((*args, kwargs.get("attn_mask")))
        return func(*args, **kwargs)


@pytest.mark.parametrize("similarity", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@by_network
def test_attention_gets_what_fused_kernels_take(
    name: str, channels_last: bool, similarity: bool
) -> None:
    """One half type for all, a head's channels side by side, an aligned mask or none at all."""
    config = replace(TINY[name], cosine_similarity=similarity)
    network = CLASSES[name](config)  # type: ignore[arg-type]  # each has its own configuration
    network.channels_last = channels_last
    with Attentions() as seen, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        network(*draw(name))
    assert {mask is None for *_, mask in seen.calls} == {True, False}
    for call in seen.calls:
        given = [tensor for tensor in call if tensor is not None]
        assert all(tensor.dtype == torch.bfloat16 for tensor in given)
        assert all(tensor.stride(-1) == 1 and tensor.ndim == 4 for tensor in given)
        for mask in given[3:]:
            assert all(stride % MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1])


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_reach_every_convolution(batch: int) -> None:
    """With one sample too, whose strides could be read either way; the velocity is the same."""
    network, (x_t, t) = build("looformer"), draw("looformer", batch)
    expected = network(x_t, t)
    formats = set()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs: formats.add(suggest_memory_format(inputs[0]))
            )
    network.channels_last = True
    torch.testing.assert_close(network(x_t, t), expected, rtol=1e-4, atol=1e-4)
    assert formats == {torch.channels_last}


def test_the_switch_of_the_layout_changes_gradients_by_rounding_only() -> None:
    """As it changes the velocities."""
    network, (x_t, t) = build("looformer"), draw("looformer")
    gradients = []
    for network.channels_last in (False, True):
        loss = network(x_t, t).square().mean()
        trained = [p for p in network.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(loss, trained))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.fixture
def _autocast_of_cuda() -> Iterator[None]:
    """Enter CUDA's autocast for bfloat16; `torch.autocast` refuses to where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    yield
    torch.autocast_decrement_nesting()
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("_autocast_of_cuda")
def test_norms_keep_half_maps_under_the_autocast_of_cuda() -> None:
    """Which runs `rms_norm` in float32, and returns that."""
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        x, last = (
            torch.empty(2, 8, 4, 8, dtype=torch.bfloat16, memory_format=layout)
            for layout in (torch.contiguous_format, torch.channels_last)
        )
        assert F.rms_norm(x, (8,)).dtype == torch.float32
        assert rms_norm(x, torch.empty(8)).dtype == torch.bfloat16
        for each in (x, last):
            normal = rms_normalize(each, dim=1)
            assert normal.dtype == torch.bfloat16
            assert normal.stride() == each.stride()


@by_network
def test_no_value_is_waited_for(name: str) -> None:
    """Fake tensors have none: whatever asked for one would raise."""
    with FakeTensorMode(), torch.no_grad():
        network, (x_t, t) = build(name), draw(name)
        with pytest.raises(DataDependentOutputException):
            t.max().item()
        assert network(x_t, t).shape == x_t.shape


@by_network
def test_a_block_is_one_graph_for_all_steps(name: str) -> None:
    """Neighbourhoods and what they compute again included; new values compile nothing anew."""
    torch._dynamo.reset()
    counters.clear()
    block = BLOCKS[name](0)
    block.compile(fullgraph=True, backend="eager")
    d = TINY[name].widths[0]
    shape = (1, d, 8, 8) if name == "looformer" else (1, 8, 8, d)
    for _ in range(3):
        x, c = torch.randn(shape), torch.randn(1, TINY[name].mapping_width)
        block(x, c, level_geometry(TINY[name], 0, 8, 8, x)).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@by_network
def test_no_step_after_the_first_compiles(
    name: str, whole: bool, recompute: bool, backend: str
) -> None:
    """The whole network as one graph, or block by block, one for each kind of block."""
    torch._dynamo.reset()
    counters.clear()
    network = build(name)
    network.activation_checkpointing = recompute
    blocks = [module for module in network.modules() if type(module).__name__ == "Block"]
    for module in [network] if whole else blocks:
        module.compile(fullgraph=True, backend=backend)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            velocity = network(*draw(name))
        velocity.square().mean().backward()
    assert counters["stats"]["unique_graphs"] == (1 if whole else 2)

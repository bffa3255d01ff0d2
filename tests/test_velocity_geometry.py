"""The geometry of a map: what it holds, and that it is computed once, whoever asks first."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from models.velocity import geometry
from models.velocity.geometry import Geometry, axial_positions, map_geometry, rotary_frequencies
from models.velocity.layers import AxialRoPE
from models.velocity.looformer import PRESETS, LooUFormer
from models.velocity.neighborhood import MASK_ALIGNMENT

HEADS, HEAD_DIM, WINDOW = 2, 16, 3


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin each test as a new process would."""
    monkeypatch.setattr(geometry, "_kept", {})


def of(like: Tensor, height: int = 9, width: int = 6) -> Geometry:
    """Ask for the geometry of a small map."""
    return map_geometry(HEADS, HEAD_DIM, WINDOW, height, width, like)


def tensors(found: Geometry) -> list[Tensor]:
    """List what a geometry consists of."""
    return [found.cos, found.sin, *(found.windows or ())]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tables_are_rounded_from_exact_angles(dtype: torch.dtype) -> None:
    """Position times frequency, in float32 at least: no angle is rounded to the type itself."""
    found = of(torch.empty((), dtype=dtype))
    wide = torch.promote_types(dtype, torch.float32)
    positions, freqs = axial_positions(9, 6).to(wide), rotary_frequencies(HEADS, HEAD_DIM).to(wide)
    for y, x in ((0, 0), (8, 5), (3, 4)):
        angles = torch.cat([place * freqs for place in positions[y, x]], dim=1)
        assert torch.equal(found.cos[y, x], angles.cos().to(dtype))
        assert torch.equal(found.sin[y, x], angles.sin().to(dtype))


def test_a_mask_needs_no_copy_on_cuda() -> None:
    """It has the type of the queries, and its rows begin at multiples of 16 elements."""
    windows = of(torch.empty((), dtype=torch.bfloat16)).windows
    assert windows is not None
    *strides, last = windows.mask.stride()
    assert windows.mask.dtype == torch.bfloat16
    assert last == 1
    assert all(stride % MASK_ALIGNMENT == 0 for stride in strides)


def test_each_size_type_and_device_is_computed_once() -> None:
    """The same tensors come back, and others for another size, type or device."""
    first = of(torch.empty(()))
    assert of(torch.empty(3)) is first
    others = (
        of(torch.empty(()), 6, 9),
        of(torch.empty(()).half()),
        of(torch.empty((), device="meta")),
    )
    assert all(other is not first for other in others)
    assert others[2].cos.is_meta
    assert of(torch.empty(())) is first


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the result is the same, computed anew; what is kept before stays."""
    kept = of(torch.empty(()))
    monkeypatch.setattr(geometry, "KEPT_BYTES", 1)
    anew, again = (of(torch.empty(()), 5, 5) for _ in range(2))
    assert anew is not again
    assert all(map(torch.equal, tensors(anew), tensors(again)))
    assert of(torch.empty(())) is kept


def test_fake_tensors_and_real_ones_do_not_meet() -> None:
    """A network that is counted or traced on fake tensors leaves nothing to one that runs."""
    for _ in range(2):
        with FakeTensorMode():
            assert all(isinstance(x, FakeTensor) for x in tensors(of(torch.empty(()))))
        assert not any(isinstance(x, FakeTensor) for x in tensors(of(torch.empty(()))))


def test_inference_first_and_then_training() -> None:
    """What inference mode has computed can be kept for a backward pass."""
    network = LooUFormer(PRESETS["tiny"])
    x_t, t = torch.randn(1, 4, 8, 8), torch.rand(1)
    with torch.inference_mode():
        network(x_t, t)
    network(x_t, t).sum().backward()


def test_several_threads_may_ask_first() -> None:
    """All of them get the same values."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(of, [torch.empty(())] * 16))
    assert all(all(map(torch.equal, tensors(found[0]), tensors(other))) for other in found)


def test_weights_with_other_frequencies_are_refused() -> None:
    """The angles would not follow them; frequencies that bfloat16 has rounded are the same ones."""
    rope = AxialRoPE(HEADS, HEAD_DIM)
    rope.load_state_dict({"freqs": rope.freqs.bfloat16()})
    with pytest.raises(RuntimeError, match=r"freqs: from 6\.2832 to .*this network has.*3\.1416"):
        rope.load_state_dict({"freqs": 2 * rotary_frequencies(HEADS, HEAD_DIM)})


def test_a_network_in_bfloat16_keeps_its_angles() -> None:
    """Casting the weights rounds the buffer, from which nothing is computed."""
    rope, like = AxialRoPE(HEADS, HEAD_DIM), torch.randn(1, 9, 6, 2, HEADS, HEAD_DIM)
    turned = rope(like, of(like))
    assert torch.equal(rope.bfloat16()(like, of(like)), turned)

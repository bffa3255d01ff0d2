"""The layers that both velocity networks use."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.velocity.geometry import axial_positions, map_geometry
from models.velocity.layers import (
    AdaRMSNorm,
    AxialRoPE,
    FeedForward,
    MappingNetwork,
    RMSNorm,
    fourier_features,
    rms_normalize,
    rotary_attention,
)


def test_rotary_frequencies_are_the_published_ones() -> None:
    """For 4 heads of 64: from pi, dealt out to the heads in turn, up to 29.2348."""
    freqs = AxialRoPE(4, 64).freqs
    head_0 = [3.1416, 4.1894, 5.5866, 7.4499, 9.9346, 13.2480, 17.6665, 23.5586]
    assert freqs.shape == (4, 8)
    assert freqs[0].tolist() == pytest.approx(head_0, abs=6e-5)
    assert freqs[1, 0].item() == pytest.approx(3.3760, abs=6e-5)
    assert freqs[3, 7].item() == pytest.approx(29.2348, abs=6e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (10, 6)])
def test_positions_of_a_halved_map_are_means_of_four(height: int, width: int) -> None:
    """As the references compute them, level by level."""
    fine = axial_positions(2 * height, 2 * width)
    means = fine.unflatten(0, (height, 2)).unflatten(2, (width, 2)).mean((1, 3))
    torch.testing.assert_close(axial_positions(height, width), means, rtol=0, atol=1e-6)


def test_the_longer_side_spans_minus_one_to_one() -> None:
    """On 2 x 4 cells x runs over +-3/4 and y, with the same step, over +-1/4."""
    positions = axial_positions(2, 4)
    assert positions[0, :, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert positions[:, 0, 0].tolist() == [-0.25, 0.25]


@settings(max_examples=25)
@given(
    start=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    other=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    shift=st.tuples(st.integers(0, 6), st.integers(0, 6)),
)
def test_scores_depend_on_displacement_only(
    start: tuple[int, int], other: tuple[int, int], shift: tuple[int, int]
) -> None:
    """A query and a key moved together keep their score."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    qk = torch.stack((q, k))[:, None, None, None, None].expand(2, 1, 1, 12, 12, 16)
    turned_q, turned_k = AxialRoPE(1, 16)(qk, map_geometry(1, 16, None, 12, 12, qk))

    def score(moved: tuple[int, int]) -> float:
        (y, x), (v, u) = start, other
        at = turned_q[0, 0, y + moved[0], x + moved[1]], turned_k[0, 0, v + moved[0], u + moved[1]]
        return float(at[0] @ at[1])

    assert score(shift) == pytest.approx(score((0, 0)), abs=1e-5)


def test_half_of_a_head_does_not_turn() -> None:
    """Channels from e/2 on come back bit for bit; lengths of the pairs stay."""
    x = torch.randn(2, 1, 2, 5, 7, 32)
    turned = AxialRoPE(2, 32)(x, map_geometry(2, 32, None, 5, 7, x))
    assert torch.equal(turned[..., 16:], x[..., 16:])
    lengths = [y[..., :16].unflatten(-1, (2, 8)).norm(dim=-2) for y in (turned, x)]
    torch.testing.assert_close(*lengths)


def test_a_window_of_the_whole_map_is_global_attention() -> None:
    """Both kinds of attention agree where both see everything."""
    rope = AxialRoPE(2, 16)
    qkv = torch.randn(3, 1, 2, 5, 6, 16)
    window, everything = (map_geometry(2, 16, window, 5, 6, qkv) for window in (7, None))
    for scale in (None, torch.tensor([3.0, 10.0])):
        torch.testing.assert_close(
            rotary_attention(qkv, rope, scale, window),
            rotary_attention(qkv, rope, scale, everything),
        )


def test_cosine_similarity_ignores_the_size_of_queries_and_keys() -> None:
    """Scaled by 100, they attend as before."""
    rope = AxialRoPE(2, 16)
    qkv = torch.randn(3, 1, 2, 4, 4, 16)
    geometry = map_geometry(2, 16, None, 4, 4, qkv)
    scale = torch.full((2,), 10.0)
    before = rotary_attention(qkv, rope, scale, geometry)
    larger = torch.cat((100 * qkv[:2], qkv[2:]))
    torch.testing.assert_close(rotary_attention(larger, rope, scale, geometry), before)


def test_rms_norm_keeps_its_statistics_in_float32() -> None:
    """Values of 300 overflow float16 when squared; their norm is 1."""
    x = torch.full((2, 8), 300.0, dtype=torch.float16)
    assert rms_normalize(x).tolist() == [[1.0] * 8] * 2


def test_adaptive_norm_starts_as_the_plain_norm() -> None:
    """Whatever the condition, and along either axis of channels."""
    x, c = torch.randn(2, 6, 6, 6), torch.randn(2, 3)
    assert torch.equal(AdaRMSNorm(6, 3)(x, c), RMSNorm(6)(x))
    along_1 = AdaRMSNorm(6, 3, bias=True, dim=1)(x, c)
    torch.testing.assert_close(along_1, RMSNorm(6)(x.movedim(1, -1)).movedim(-1, 1))


def test_the_second_half_is_the_gate() -> None:
    """[a, gate] -> a GELU(gate), in the layers that follow k-diffusion."""
    layer = FeedForward(torch.nn.Identity(), 1, 1, zero_init=False)
    with torch.no_grad():
        layer.up_proj.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        layer.down_proj.weight.fill_(1.0)
    gelu = -1 * 0.5 * (1 + math.erf(-1 / math.sqrt(2)))
    assert layer(torch.ones(1, 1)).item() == pytest.approx(1 + 2 * gelu, abs=1e-6)


def test_the_mapping_network_starts_as_two_norms() -> None:
    """Its feed-forward layers start from zero."""
    x = torch.randn(3, 8)
    torch.testing.assert_close(MappingNetwork(8, 24, 2)(x), RMSNorm(8)(RMSNorm(8)(x)))


def test_autocast_leaves_the_time_exact() -> None:
    """The features of t are the same under bfloat16 autocast: no rounding to 3 digits."""
    t, weight = torch.rand(5, 1), torch.randn(16, 1)
    exact = fourier_features(t, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fourier_features(t, weight), exact)

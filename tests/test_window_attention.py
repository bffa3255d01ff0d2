"""Window attention: which tokens see each other, and how their offsets are numbered."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.predictor.swinir import PRESETS, SwinIR
from models.predictor.window_attention import relative_position_index, shift_mask


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

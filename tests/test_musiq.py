"""MUSIQ: the reference's values under seeded weights, its conventions, the published file.

The published weights are not at hand: that damage lowers the score is not shown here.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.catalog import METRICS, Judge
from models.metrics.musiq import FILE, HEADS, MUSIQ, Attention, Encoder, cut, pyramid
from models.ranges import uint8_to_model
from tests.support.seeded_weights import grey512, read_keys, seeded, sines512, zeros

KEYS = read_keys("musiq")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Draw the seeded weights."""
    return seeded(KEYS, 101)


@pytest.fixture(scope="module")
def judge(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Load them from a file of the published name."""
    folder = tmp_path_factory.mktemp("musiq")
    torch.save(weights, folder / FILE)
    return METRICS["musiq"].load(folder)


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> MUSIQ:
    """Load them into the network."""
    with torch.device("meta"):
        model = MUSIQ()
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False)


def pictures(height: int, width: int, batch: int = 1) -> Tensor:
    """Draw noise: uint8 [B, 3, H, W]."""
    noise = np.random.default_rng(height).integers(0, 256, (batch, 3, height, width), np.uint8)
    return torch.from_numpy(noise)


def test_names_and_shapes_are_the_published_files() -> None:
    """All 248 tensors, none more; their hash is checked in test_seeded_weights.py."""
    with torch.device("meta"):
        model = MUSIQ()

    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == KEYS


@pytest.mark.parametrize(
    ("draw", "expected"),
    [(sines512, 0.084224), pytest.param(grey512, -1.735692, marks=pytest.mark.slow)],
)
def test_scores_are_the_references(
    judge: Judge, draw: Callable[[], Tensor], expected: float
) -> None:
    """The published code gives these under the same weights."""
    assert judge.compute(draw()).tolist() == pytest.approx([expected], rel=1e-4)


def test_tokens_and_places_are_the_references() -> None:
    """A picture of 512 pixels has 449 tokens, and the indices of their places add up to 20,647."""
    parts = [cut(scale) for scale in pyramid(uint8_to_model(sines512()))]

    assert [len(places) for _, places in parts] == [49, 144, 256]
    assert sum(int(places.sum()) for _, places in parts) == 20647


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((5, 448), [(2, 224), (4, 384)]),  # 2.5 becomes 2, 4.29 becomes 4
        ((7, 448), [(4, 224), (6, 384)]),  # 3.5 becomes 4
        ((600, 400), [(224, 149), (384, 256)]),
        ((1, 1), [(224, 224), (384, 384)]),
    ],
)
def test_sizes_are_rounded_half_to_even(
    size: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    """The longer side becomes 224 and 384, from above and from below; the third scale is kept."""
    images = torch.zeros(1, 3, *size)

    assert [tuple(scale.shape[2:]) for scale in pyramid(images)] == [*expected, size]


def bicubic(image: np.ndarray, side: int) -> np.ndarray:
    """Resize the first axis by four taps of the cubic kernel with a = -3/4, borders repeated."""
    at = (np.arange(side) + 0.5) * len(image) / side - 0.5
    result = np.zeros((side, *image.shape[1:]))
    for tap in range(-1, 3):
        place = np.floor(at).astype(int) + tap
        d = np.abs(at - place)
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        far = -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3
        weight = np.where(d <= 1, near, far)
        result += weight[:, None] * image[place.clip(0, len(image) - 1)]
    return result


def test_scales_are_bicubic_without_a_low_pass_filter() -> None:
    """By the kernel's own formula, in a reduction and in an enlargement."""
    image = pictures(300, 600)[0, 0].double() / 255
    small, large, _ = pyramid(image[None, None].expand(1, 3, -1, -1))
    expected = [bicubic(bicubic(image.numpy(), h).T, w).T for h, w in ((112, 224), (192, 384))]

    for scale, wanted in zip((small, large), expected, strict=True):
        np.testing.assert_allclose(scale[0, 0].numpy(), wanted, atol=1e-9)
    tiny = pictures(3, 5)[0, 0].double() / 255
    enlarged = pyramid(tiny[None, None].expand(1, 3, -1, -1))[0][0, 0].numpy()
    np.testing.assert_allclose(enlarged, bicubic(bicubic(tiny.numpy(), 134).T, 224).T, atol=1e-9)


def test_the_border_is_zeros_and_the_larger_part_of_it_is_last() -> None:
    """A picture of 33 x 61 pixels gets 15 rows before and 16 behind, one column and two."""
    image = torch.ones(1, 3, 33, 61)
    patches, places = cut(image)
    together = F.fold(patches, (64, 64), 32, stride=32)

    assert torch.equal(together, F.pad(image, (1, 2, 15, 16)))
    assert places.tolist() == [0, 5, 50, 55]
    assert torch.equal(patches[0, :, 1].view(3, 32, 32), together[0, :, :32, 32:])


def test_places_are_the_nearest_of_ten() -> None:
    """As PyTorch resizes the numbers 0 to 9, whatever the count of patches."""
    for count in range(1, 140):
        _, places = cut(torch.zeros(1, 1, 32, 32 * count))
        nearest = F.interpolate(torch.arange(10.0)[None, None], count, mode="nearest")
        assert places.tolist() == nearest[0, 0].int().tolist()


def published_way(model: MUSIQ, images: Tensor) -> Tensor:
    """Score as the published code does: filled up to 49 and 144 tokens, -1000 for the filling."""
    patches, places, ids, mask = [], [], [], []
    for number, (some, at) in enumerate(cut(scale) for scale in pyramid(images)):
        count = len(at)
        missing = max((49, 144, 0)[number] - count, 0)
        patches.append(F.pad(some, (0, missing)))
        places.append(F.pad(at, (0, missing)))
        ids.append(F.pad(torch.full((count,), number), (0, missing)))
        mask.append(F.pad(torch.ones(count), (0, missing)))
    flat = torch.cat(patches, dim=2)[0].T.reshape(-1, 3, 32, 32)
    kept = F.pad(torch.cat(mask), (1, 0), value=1.0)
    allowed = kept[:, None] * kept
    assert allowed.min() == 0

    def attend(attention: Attention, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).view(-1, HEADS, 64).transpose(0, 1)
            for layer in (attention.query, attention.key, attention.value)
        )
        logits = query @ key.transpose(1, 2) / 8
        weights = logits.masked_fill(allowed == 0, -1000).softmax(dim=2)
        return attention.out((weights @ value).transpose(0, 1).flatten(1))

    encoder: Encoder = model.transformer_encoder
    x = model.encode(flat) + encoder.posembed_input["position_emb"][0, torch.cat(places)]
    x = x + encoder.scaleembed_input["scale_emb"][torch.cat(ids)]
    x = torch.cat([encoder.cls[0], x])
    for block in encoder.transformer.values():
        x = x + attend(block.attention, block.norm1(x))
        x = x + block.mlp["fc2"](F.gelu(block.mlp["fc1"](block.norm2(x))))
    return model.head(encoder.encoder_norm(x[:1]))[0]


def test_the_published_filling_changes_no_value(model: MUSIQ) -> None:
    """A wide picture has fewer tokens than the published code makes room for."""
    images = uint8_to_model(pictures(40, 150))

    assert model(images).tolist() == pytest.approx(published_way(model, images).tolist(), rel=1e-4)


def test_kernels_are_standardised(model: MUSIQ, weights: dict[str, Tensor]) -> None:
    """A constant added to the kernels, or a factor, moves no value beyond that of 1e-5."""
    patches = uint8_to_model(pictures(32, 32))
    changed = {
        name: 100 * value + 3 if value.ndim == 4 else value for name, value in weights.items()
    }
    with torch.device("meta"):
        other = MUSIQ()
    other.load_state_dict(changed, assign=True)

    torch.testing.assert_close(other.encode(patches), model.encode(patches), rtol=2e-3, atol=2e-3)


def test_the_order_of_a_patchs_features_is_tensorflows(
    model: MUSIQ, weights: dict[str, Tensor]
) -> None:
    """The first 256 columns of the embedding weigh the channels of the first place."""
    patch = uint8_to_model(pictures(32, 32))
    x = model.gn_root(model.conv_root(patch)).relu()
    x = model.block1(F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, stride=2))
    kernel = weights["embedding.weight"].view(384, 8, 8, 256)
    token = torch.einsum("ohwc,bchw->bo", kernel, x) + weights["embedding.bias"]

    torch.testing.assert_close(model.encode(patch), token, rtol=1e-4, atol=1e-4)


def test_each_picture_is_judged_by_itself(judge: Judge) -> None:
    """Whatever else is in the batch."""
    images = pictures(40, 500, batch=2)  # few tokens
    alone = torch.cat([judge.compute(image[None]) for image in images])

    torch.testing.assert_close(judge.compute(images), alone, rtol=1e-4, atol=1e-5)
    assert len(judge.digest) == 64


def test_a_line_of_pixels_has_no_score(judge: Judge) -> None:
    """At 448 to 1, the first scale has half a pixel of the shorter side, which rounds to none."""
    assert judge.compute(pictures(1, 448, batch=2)).isnan().all()
    assert judge.compute(pictures(447, 1)).isfinite().all()


def test_other_heads_are_refused(tmp_path: Path) -> None:
    """The file of AVA, whose head gives ten values, has other names."""
    head = {"head.0.weight": (10, 384), "head.0.bias": (10,)}
    keys = {name: shape for name, shape in KEYS.items() if "head" not in name} | head
    torch.save(zeros(keys), tmp_path / FILE)

    with pytest.raises(CheckpointError, match=r"missing \(2\): head.bias, head.weight"):
        METRICS["musiq"].load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With its size, its address and its place."""
    with pytest.raises(CheckpointNotFoundError) as caught:
        METRICS["musiq"].load(tmp_path)

    for part in (str(tmp_path / FILE), "109 MB", "https://huggingface.co/chaofengc", "put it"):
        assert part in str(caught.value)


@pytest.mark.parametrize("cache", ["checkpoints", "pyiqa"])
def test_both_caches_are_searched(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch.hub's and pyiqa's; the published list of names loads whole."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / cache).mkdir()
    torch.save({"params": zeros(KEYS)}, tmp_path / cache / FILE)

    assert METRICS["musiq"].load().compute(pictures(8, 8)).tolist() == [0.0]

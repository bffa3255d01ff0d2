"""LMD: its network, how a map becomes a landmark, the variants, what it refuses."""

import copy
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.catalog import METRICS, Judge
from models.metrics.lmd import (
    FILE,
    LandmarkNetwork,
    landmarks,
    prepare_authors,
    prepare_vqfr,
)
from models.metrics.published import load_published
from tests.support.seeded_weights import grey512, read_keys, seeded, sines512

SEED, SEEDED = 105, 14.7163
"""Of the weights; the distance of the waves and the grey under them."""
CUBIC = (-0.09375, 0.59375, 0.59375, -0.09375)
"""Keys' cubic with a = -0.75 halfway between the second and the third of four pixels."""


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Draw weights under the published file's names."""
    return seeded(read_keys("fan_wflw"), SEED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    """Write them as the published file has them: under `state_dict`, beside other things."""
    folder = tmp_path_factory.mktemp("lmd")
    torch.save({"state_dict": weights, "epoch": 60}, folder / FILE.name)
    return folder


@pytest.fixture(scope="module")
def network(folder: Path) -> LandmarkNetwork:
    """Load the network."""
    return load_published(LandmarkNetwork, FILE, folder)


@pytest.fixture(scope="module")
def judges(folder: Path) -> dict[str, Judge]:
    """Load both variants by the catalogue."""
    return {name: METRICS[name].load(folder) for name in ("lmd", "lmd_vqfr")}


def reference(weights: Mapping[str, Tensor], images: Tensor, mistake: str = "") -> Tensor:
    """Compute the last maps in float64 by the names of the weights; with a mistake, or not."""

    def get(name: str) -> Tensor:
        return weights[name].double()

    def norm(x: Tensor, name: str) -> Tensor:
        scale = get(f"{name}.weight") / (get(f"{name}.running_var") + 1e-5).sqrt()
        shift = get(f"{name}.bias") - get(f"{name}.running_mean") * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = get(f"{name}.weight")
        bias = get(f"{name}.bias") if f"{name}.bias" in weights else None
        return F.conv2d(x, kernel, bias, stride, kernel.shape[2] // 2)

    def block(x: Tensor, at: str) -> Tensor:
        first = conv(norm(x, f"{at}.bn1").relu(), f"{at}.conv1")
        second = conv(norm(first, f"{at}.bn2").relu(), f"{at}.conv2")
        third = conv(norm(second, f"{at}.bn3").relu(), f"{at}.conv3")
        if f"{at}.downsample.2.weight" in weights:
            x = conv(norm(x, f"{at}.downsample.0").relu(), f"{at}.downsample.2")
        return torch.cat([first, second, third], dim=1) + x

    def halved(x: Tensor) -> Tensor:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    def placed(x: Tensor, boundary: Tensor | None) -> Tensor:
        side = x.shape[2]
        line = torch.tensor([2 * n / (side - 1) - 1 for n in range(side)], dtype=torch.float64)
        down, across = line.view(1, 1, -1, 1), line.view(1, 1, 1, -1)
        if mistake == "rows and columns exchanged":
            down, across = across, down
        a, b = (some.expand(len(x), 1, side, side) for some in (down, across))
        seen = [x, a, b, (a**2 + b**2).sqrt() / 2**0.5]
        if boundary is not None:
            on = boundary.clamp(0, 1) > (-1 if mistake == "no boundary" else 0.05)
            seen += [a * on, b * on]
        return torch.cat(seen, dim=1)

    def hourglass(x: Tensor, at: str, level: int) -> Tensor:
        low = block(halved(x), f"{at}.b2_{level}")
        low = block(low, f"{at}.b2_plus_1") if level == 1 else hourglass(low, at, level - 1)
        low = block(low, f"{at}.b3_{level}")
        return block(x, f"{at}.b1_{level}") + low.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = norm(conv(placed(images.double(), None), "conv1.conv", 2), "bn1").relu()
    x = block(block(halved(block(x, "conv2")), "conv3"), "conv4")
    maps = None
    for stage in range(4):
        boundary = None if maps is None else maps[:, 98:]
        seen = hourglass(conv(placed(x, boundary), f"m{stage}.coordconv.conv"), f"m{stage}", 4)
        seen = conv(block(seen, f"top_m_{stage}"), f"conv_last{stage}")
        seen = norm(seen, f"bn_end{stage}").relu()
        maps = conv(seen, f"l{stage}")
        if stage < 3:
            x = x + conv(seen, f"bl{stage}")
            x = x if mistake == "no maps between the stages" else x + conv(maps, f"al{stage}")
    assert maps is not None
    return maps


def test_the_network_is_the_published_one(
    network: LandmarkNetwork, weights: dict[str, Tensor]
) -> None:
    """The maps are those computed by the names of the weights; each mistake gives others."""
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mistakes = ("rows and columns exchanged", "no boundary", "no maps between the stages")

    found = copy.deepcopy(network).double()(images.double())  # no cell is near to the threshold

    assert found.shape == (1, 99, 16, 16)
    torch.testing.assert_close(found, reference(weights, images), rtol=1e-9, atol=1e-9)
    for mistake in mistakes:
        assert (found - reference(weights, images, mistake)).abs().max() > 0.1


def maps_with(*peaks: tuple[int, int], seed: int = 0) -> Tensor:
    """Draw a map [1, N, 64, 64] below 1 for each peak, which is 2 at its (x, y)."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.random((1, len(peaks), 64, 64)))
    for number, (x, y) in enumerate(peaks):
        maps[0, number, y, x] = 2
    return maps


@pytest.mark.parametrize(("right", "below"), [(1, 1), (1, -1), (-1, 1), (-1, -1), (0, 0)])
def test_a_landmark_is_a_quarter_nearer_to_the_larger_neighbour(right: int, below: int) -> None:
    """In both directions; where both neighbours are equal, it is in the middle of its cell."""
    maps = torch.zeros(1, 1, 64, 64)
    maps[0, 0, 20, 10] = 1
    maps[0, 0, 20, 10 + right], maps[0, 0, 20 + below, 10] = (
        1 - 0.5 * abs(right),
        1 - abs(below) / 2,
    )

    assert landmarks(maps)[0, 0].tolist() == [10.5 + right / 4, 20.5 + below / 4]


@pytest.mark.parametrize("corner", [(63, 63), (0, 63), (63, 0), (0, 0), (30, 63), (30, 0)])
def test_a_landmark_at_the_end_of_its_map_moves_no_other(corner: tuple[int, int]) -> None:
    """Each is placed as if it were alone; none fails, and none is a cell away from its peak."""
    peaks = ((20, 30), (41, 12), corner, (5, 60))
    maps = maps_with(*peaks)

    together = landmarks(maps)[0]

    alone = torch.cat([landmarks(maps[:, n : n + 1])[0] for n in range(len(peaks))])
    assert torch.equal(together, alone)
    assert ((together - torch.tensor(peaks) - 0.5).abs() <= 0.25).all()
    batch = torch.cat([maps, maps_with(*peaks[::-1], seed=1)])
    assert torch.equal(landmarks(batch)[0], together)


def test_the_variants_resize_without_antialiasing() -> None:
    """Bicubic weighs four pixels, bilinear averages two by two and rounds; both give [0, 1]."""
    images = sines512()
    unit = images[0].double() / 255
    padded = F.pad(unit, (1, 1, 1, 1), mode="replicate").unfold(1, 4, 2).unfold(2, 4, 2)
    kernel = torch.tensor(CUBIC, dtype=torch.float64)
    cubic = torch.einsum("cyxab,a,b->cyx", padded, kernel, kernel)
    mean = images[0].double().view(3, 256, 2, 256, 2).mean(dim=(2, 4)) / 255

    authors, vqfr = prepare_authors(images), prepare_vqfr(images)

    assert authors.shape == vqfr.shape == (1, 3, 256, 256)
    torch.testing.assert_close(authors[0].double(), cubic, rtol=0, atol=1e-5)
    assert (vqfr[0].double() - mean).abs().max() <= 0.5 / 255 + 1e-6  # a level's rounding
    odd = np.random.default_rng(0).integers(0, 256, (100, 90, 3), dtype=np.uint8)
    found = prepare_vqfr(torch.from_numpy(odd).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, cv2.resize(odd, (256, 256)) / 255.0, atol=1e-6)


@pytest.mark.parametrize("name", ["lmd", pytest.param("lmd_vqfr", marks=pytest.mark.slow)])
def test_distances_of_seeded_weights(name: str, judges: dict[str, Judge]) -> None:
    """Of the waves and the grey, as `reference` gives them in float64; the grey's to itself is 0.

    Pictures stay as they were: the authors' script divides the caller's tensor by 255.
    """
    images, references = torch.cat([sines512(), grey512()]), torch.cat([grey512(), grey512()])
    before = images.clone()

    found = judges[name].compute(images, references)

    assert found.tolist() == [pytest.approx(SEEDED, abs=0.05), 0]
    assert found.dtype == torch.float64
    assert torch.equal(images, before)


@pytest.mark.slow
def test_a_distance_is_told_at_512_pixels_whatever_the_size(
    network: LandmarkNetwork, judges: dict[str, Judge]
) -> None:
    """Eight to a cell of the map; pictures of half the side, seen alike, have the same distance."""
    maps = network(prepare_vqfr(torch.cat([sines512(), grey512()])))
    points = landmarks(maps[:, :98]).numpy() * 8
    expected = np.hypot(*(points[0] - points[1]).T).mean()
    small = [(prepare_vqfr(images) * 255).round().byte() for images in (sines512(), grey512())]

    assert maps.shape == (2, 99, 64, 64)
    assert expected == pytest.approx(SEEDED, abs=0.05)
    assert judges["lmd_vqfr"].compute(*small).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["lmd", "lmd_vqfr"])
def test_unequal_or_float_pictures_are_not_compared(name: str, judges: dict[str, Judge]) -> None:
    """A batch of one does not stand for two, nor a float for a level."""
    x = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)

    with pytest.raises(ValueError, match="one shape"):
        judges[name].compute(x, x[:1])
    with pytest.raises(TypeError, match="give uint8"):
        judges[name].compute(x.float(), x)


def test_the_file_loads_without_counters_too(
    tmp_path: Path, weights: dict[str, Tensor], judges: dict[str, Judge]
) -> None:
    """Old versions of PyTorch saved none; the weights are the same, and so is their digest."""
    bare = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert len(bare) < len(weights)
    torch.save({"state_dict": bare}, tmp_path / FILE.name)

    assert METRICS["lmd"].load(tmp_path).digest == judges["lmd"].digest
    assert len(judges["lmd"].digest) == 64


def test_another_network_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """Two hourglasses are not four; whatever is missing is named."""
    small = {k: v for k, v in weights.items() if not k.startswith(("m2.", "m3."))}
    torch.save({"state_dict": small}, tmp_path / FILE.name)

    with pytest.raises(CheckpointError, match=r"LandmarkNetwork.*missing \(394\): m2\."):
        METRICS["lmd"].load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With its size, where to get it and where to put it."""
    with pytest.raises(CheckpointNotFoundError) as caught:
        METRICS["lmd_vqfr"].load(tmp_path)

    assert str(caught.value).startswith(str(tmp_path / "alignment_WFLW_4HG.pth"))
    for said in ("194 MB", "https://github.com/xinntao/facexlib/releases", "put it there"):
        assert said in str(caught.value)

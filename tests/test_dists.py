"""DISTS: its definition, the published numbers and layouts, what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from skimage import data
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.catalog import METRICS
from models.metrics.dists import DISTS, FILE, L2Pooling, load_dists
from tests.support.training_sets import write_dists

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of VGG16, in torchvision's places
POOLED = (4, 9, 16, 23)
ENDS = (3, 8, 15, 22, 29)  # the ReLUs that end the stages
MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
MISTAKES = ("max pooling", "no normalisation", "a normalised image", "before the ReLU", "n - 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files of the published names and layouts, with random weights."""
    return write_dists(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(folder: Path) -> DISTS:
    """Load them."""
    return load_dists(folder)


def images(seed: int, *, side: int = 21) -> Tensor:
    """Draw two images in [0, 1]; sides that do not halve evenly."""
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def reference(folder: Path, x: Tensor, y: Tensor, mistake: str = "") -> float:
    """Compute DISTS of two images [3, H, W] from the files in NumPy; with a mistake, or not."""
    trunk = torch.load(folder / "vgg16-397923af.pth", weights_only=True)
    fitted = torch.load(folder / FILE, weights_only=True)
    alpha, beta = (fitted[name].double().numpy().ravel() for name in ("alpha", "beta"))
    mine, theirs = (_features(trunk, z.double(), mistake) for z in (x, y))
    similarity, channel = 0.0, 0
    for stage_x, stage_y in zip(mine, theirs, strict=True):
        for a, b in zip(stage_x, stage_y, strict=True):
            cov = np.cov(a.ravel(), b.ravel(), ddof=1 if mistake == "n - 1" and a.size > 1 else 0)
            texture = (2 * a.mean() * b.mean() + 1e-6) / (a.mean() ** 2 + b.mean() ** 2 + 1e-6)
            structure = (2 * cov[0, 1] + 1e-6) / (cov[0, 0] + cov[1, 1] + 1e-6)
            similarity += alpha[channel] * texture + beta[channel] * structure
            channel += 1
    return float(1 - similarity / (alpha.sum() + beta.sum()))


def _features(trunk: dict[str, Tensor], image: Tensor, mistake: str) -> list[np.ndarray]:
    """Return the image and the features of five stages, [C, h, w] each."""
    normalised = (image - MEAN[:, None, None]) / STD[:, None, None]
    stages = [normalised if mistake == "a normalised image" else image]
    x = (image if mistake == "no normalisation" else normalised)[None]
    for place in range(30):
        before = x
        if place in CONVOLUTIONS:
            weight, bias = trunk[f"features.{place}.weight"], trunk[f"features.{place}.bias"]
            x = torch.conv2d(x, weight.double(), bias.double(), padding=1)
        elif place in POOLED:
            x = torch.max_pool2d(x, 2) if mistake == "max pooling" else _pool(x)
        else:
            x = x.relu()
        if place in ENDS:
            stages.append((before if mistake == "before the ReLU" else x)[0])
    return [stage.numpy() for stage in stages]


def _pool(x: Tensor) -> Tensor:
    """Blur the squares of every channel by SciPy, take every second place and the root."""
    window = np.outer(np.hanning(5)[1:-1], np.hanning(5)[1:-1])
    window /= window.sum()
    blurred = [correlate(plane**2, window, mode="constant")[::2, ::2] for plane in x[0].numpy()]
    return torch.from_numpy(np.sqrt(np.stack(blurred) + 1e-12))[None]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    """Compute the distances of the two pairs that the tests take."""
    return [reference(folder, *pair) for pair in zip(images(0), images(1), strict=True)]


def test_distances_are_the_definition(model: DISTS, expected: list[float]) -> None:
    """As computed in NumPy and float64 from the published keys, for each image of the batch."""
    assert model(images(0), images(1)).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_definition_notices_a_mistake(
    mistake: str, folder: Path, expected: list[float]
) -> None:
    """What could be got wrong moves a distance by more than 10 times what the test allows."""
    wrong = reference(folder, images(0)[0], images(1)[0], mistake)

    assert abs(wrong / expected[0] - 1) > 1e-4


def test_pooling_halves_any_side_upwards() -> None:
    """Also a side of one; a constant stays itself away from the border, where zeros count."""
    pooled = L2Pooling()(torch.full((1, 2, 7, 1), 3.0))

    assert pooled.shape == (1, 2, 4, 1)
    inner = L2Pooling()(torch.full((1, 1, 7, 7), 3.0))[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


# What the package dists-pytorch 0.1 gives for these photographs and this noise, with its own code
# and its weights around torchvision's VGG16.
PUBLISHED = {"astronaut": 0.2459642, "coffee": 0.2495177, "chelsea": 0.3516421}


def test_numbers_are_the_package_s() -> None:
    """With the published weights, where torch.hub's cache has them."""
    try:
        judge = METRICS["dists"].load()
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))
    rng, found = np.random.default_rng(0), {}
    for name in PUBLISHED:
        hq = getattr(data, name)()[:256, :256]
        lq = np.clip(np.round(hq + rng.normal(0, 20, hq.shape)), 0, 255).astype(np.uint8)
        pair = [torch.from_numpy(x.transpose(2, 0, 1)[None].copy()) for x in (lq, hq)]
        found[name] = judge.compute(*pair).item()

    assert found == pytest.approx(PUBLISHED, rel=2e-5)


def test_the_package_s_name_of_the_fitted_weights_will_do(
    folder: Path, tmp_path: Path, model: DISTS
) -> None:
    """`weights.pt`, as the package dists-pytorch ships it: two parameters rather than tensors."""
    (tmp_path / "vgg16-397923af.pth").symlink_to(folder / "vgg16-397923af.pth")
    fitted = torch.load(folder / FILE, weights_only=True)
    torch.save({k: torch.nn.Parameter(v) for k, v in fitted.items()}, tmp_path / "weights.pt")
    loaded = load_dists(tmp_path)

    assert all(torch.equal(loaded.weights[name], model.weights[name]) for name in fitted)
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())


def test_both_caches_are_searched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: DISTS
) -> None:
    """Torchvision's file in torch.hub's, the fitted weights there or in pyiqa's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for cache, file in (("checkpoints", "vgg16-397923af.pth"), ("pyiqa", FILE)):
        (tmp_path / cache).mkdir()
        (tmp_path / cache / file).symlink_to(folder / file)

    assert torch.equal(load_dists().weights["alpha"], model.weights["alpha"])


def test_each_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    """With the path that was looked at, and where to get it."""
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_dists(tmp_path)
    assert str(tmp_path / "vgg16-397923af.pth") in str(caught.value)
    assert "https://download.pytorch.org/models/vgg16-397923af.pth (553 MB)" in str(caught.value)

    (tmp_path / "vgg16-397923af.pth").symlink_to(folder / "vgg16-397923af.pth")
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_dists(tmp_path)
    assert f"get https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/{FILE}" in str(
        caught.value
    )
    assert "weights.pt of the package dists-pytorch" in str(caught.value)


def test_another_network_s_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """LPIPS's fitted weights under DISTS's name: their keys are listed."""
    (tmp_path / "vgg16-397923af.pth").symlink_to(folder / "vgg16-397923af.pth")
    shutil.copy(folder / "LPIPS_v0.1_vgg-a78928a0.pth", tmp_path / FILE)

    with pytest.raises(CheckpointError, match=r"missing \(2\): alpha, beta.*lin0.model.1.weight"):
        load_dists(tmp_path)

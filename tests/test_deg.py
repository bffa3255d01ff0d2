"""Deg: its network, the two variants of what the network sees, the angle, what it refuses."""

import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.catalog import METRICS, Judge
from models.metrics.deg import (
    FILE,
    FaceResNet,
    angles,
    load,
    prepare_authors,
    prepare_vqfr,
)
from models.metrics.published import load_published
from tests.support.seeded_weights import grey512, read_keys, seeded, sines512

SEED = 104
CUBIC = (-0.09375, 0.59375, 0.59375, -0.09375)
"""Keys' cubic with a = -0.75 halfway between the second and the third of four pixels."""


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Draw weights under the published file's names, without `module.`."""
    return seeded(read_keys("resnet18_110"), SEED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    """Write them as the published file has them: behind `module.`, as DataParallel names them."""
    folder = tmp_path_factory.mktemp("deg")
    torch.save({f"module.{name}": value for name, value in weights.items()}, folder / FILE.name)
    return folder


@pytest.fixture(scope="module")
def judges(folder: Path) -> dict[str, Judge]:
    """Load both variants by the catalogue."""
    return {name: METRICS[name].load(folder) for name in ("deg", "deg_vqfr")}


def pair() -> tuple[Tensor, Tensor]:
    """Return a photograph and a blurred copy with noise, uint8 [1, 3, 512, 512]."""
    photograph = data.astronaut()
    noise = np.random.default_rng(0).normal(0, 10, photograph.shape)
    worse = (cv2.GaussianBlur(photograph, (0, 0), 3) + noise).round().clip(0, 255)
    hq, lq = (
        torch.from_numpy(x.astype(np.uint8)).permute(2, 0, 1)[None] for x in (photograph, worse)
    )
    return lq, hq


def reference(weights: Mapping[str, Tensor], grey: Tensor, mistake: str = "") -> Tensor:
    """Compute the features by the names of the weights; with a deliberate mistake, or not."""
    values = {name: value.to(grey.dtype) for name, value in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        kinds = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (values[f"{name}.{kind}"] for kind in kinds)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        scale = weight / (variance + 1e-5).sqrt()
        return x * scale.view(shape) + (bias - mean * scale).view(shape)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = values[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)

    def prelu(x: Tensor, name: str) -> Tensor:
        return x.clamp(min=0) + values[f"{name}.weight"] * x.clamp(max=0)

    x = F.max_pool2d(prelu(norm(conv(grey, "conv1"), "bn1"), "prelu"), 2)
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            strides = (stride, 1) if mistake == "the first convolution strides" else (1, stride)
            begun = norm(x, f"{at}.bn0")
            y = prelu(norm(conv(begun, f"{at}.conv1", strides[0]), f"{at}.bn1"), f"{at}.prelu")
            y = norm(conv(y, f"{at}.conv2", strides[1]), f"{at}.bn2")
            shortcut = begun if mistake == "the shortcut begins behind the norm" else x
            if f"{at}.downsample.0.weight" in weights:
                shortcut = norm(conv(shortcut, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = y + shortcut
            x = x if mistake == "no slope behind the sum" else prelu(x, f"{at}.prelu")
    x = norm(x, "bn4").flatten(1)
    x = x @ values["fc5.weight"].T + values["fc5.bias"]
    return norm(x, "bn5")


def grey_of(variant: str, images: Tensor) -> Tensor:
    """Prepare 512 x 512 pictures in float64 and by words: every fourth pixel and its neighbours."""
    pixels = images[0].double()
    if variant == "authors":
        levels = (0.2989 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]) / 255
        kernel = torch.tensor(CUBIC, dtype=torch.float64)
        four = levels.view(128, 4, 128, 4)
        return torch.einsum("yaxb,a,b->yx", four, kernel, kernel)[None, None]
    whole = images[0].permute(1, 2, 0).flip(2).numpy()  # OpenCV counts blue, green, red
    file = cv2.imencode(".png", whole)[1]
    levels = torch.from_numpy(cv2.imdecode(file, cv2.IMREAD_GRAYSCALE)).double()
    middle = levels.view(128, 4, 128, 4)[:, 1:3, :, 1:3].mean(dim=(1, 3))
    return ((middle - 127.5) / 127.5)[None, None]


def test_the_network_is_the_published_one(folder: Path, weights: dict[str, Tensor]) -> None:
    """Features are those computed by the names of the weights; each mistake gives others."""
    network = load_published(FaceResNet, FILE, folder)
    grey = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mistakes = (
        "the first convolution strides",
        "the shortcut begins behind the norm",
        "no slope behind the sum",
    )

    found, expected = network(grey), reference(weights, grey)
    assert found.shape == (1, 512)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    for mistake in mistakes:
        wrong = reference(weights, grey, mistake)
        assert (found - wrong).norm() > 1e-2 * wrong.norm()


@pytest.mark.parametrize("seed", range(2))
def test_the_variant_vqfr_sees_what_opencv_reads_and_resizes(seed: int) -> None:
    """The grey is that of cv2.imread of a PNG file, the resize cv2's, the range [-1, 1]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (200, 180, 3), dtype=np.uint8)
    file = cv2.imencode(".png", pixels[..., ::-1])[1]
    expected = cv2.resize(cv2.imdecode(file, cv2.IMREAD_GRAYSCALE), (128, 128)).astype(np.float64)

    found = prepare_vqfr(torch.from_numpy(pixels).permute(2, 0, 1)[None])

    assert found.shape == (1, 1, 128, 128)
    np.testing.assert_allclose(found[0, 0], (expected - 127.5) / 127.5, atol=1e-6)


def test_what_the_variants_see_is_not_antialiased() -> None:
    """Of four pixels, bilinear takes the inner two and bicubic all, as its kernel weighs them."""
    images = sines512()

    authors, vqfr = prepare_authors(images).double(), prepare_vqfr(images).double()

    torch.testing.assert_close(authors, grey_of("authors", images), rtol=0, atol=1e-5)
    assert (vqfr - grey_of("vqfr", images)).abs().max() <= 0.5 / 127.5 + 1e-6  # a level's rounding
    assert authors.min() > -0.2
    assert vqfr.min() < -0.5


@pytest.mark.parametrize(("name", "expected"), [("deg", 23.33850), ("deg_vqfr", 70.69058)])
def test_angles_of_seeded_weights(name: str, expected: float, judges: dict[str, Judge]) -> None:
    """Of the waves and the grey, as `reference` and an arccos give them in float64."""
    assert judges[name].compute(sines512(), grey512()).item() == pytest.approx(expected, rel=1e-4)


def test_the_variants_are_not_comparable(judges: dict[str, Judge]) -> None:
    """One pair has angles that differ by much more than methods do."""
    authors, vqfr = (judges[name].compute(*pair()).item() for name in ("deg", "deg_vqfr"))
    assert max(authors, vqfr) > 1.5 * min(authors, vqfr)


def test_a_picture_is_at_no_angle_from_itself(judges: dict[str, Judge]) -> None:
    """It is 0 and not almost; the variant vqfr takes it for a copy, which does not count."""
    images = torch.cat(pair())

    assert judges["deg"].compute(images, images).tolist() == [0, 0]
    assert judges["deg_vqfr"].compute(images, images).isnan().all()


def test_a_pair_below_a_degree_does_not_count_in_the_variant_vqfr(folder: Path) -> None:
    """As VQFR's script leaves it out; the angle itself is above zero."""
    _, hq = pair()
    touched = hq.clone()
    touched[:, :, 256:258, 256:258] += 8
    network = load_published(FaceResNet, FILE, folder)
    angle = angles(network(prepare_vqfr(touched)), network(prepare_vqfr(hq))).item()

    assert 0 < angle < 1
    assert load("vqfr", folder, "cpu").compute(touched, hq).isnan().all()


@pytest.mark.parametrize("name", ["deg", pytest.param("deg_vqfr", marks=pytest.mark.slow)])
def test_no_angle_depends_on_the_other_pictures(name: str, judges: dict[str, Judge]) -> None:
    """Nor on which of the two is the reference; it is float64, and pictures stay what they were."""
    lq, hq = pair()
    images, references = torch.cat([lq, sines512()]), torch.cat([hq, grey512()])
    before = images.clone()

    together = judges[name].compute(images, references)

    swapped = judges[name].compute(references[1:], images[1:])
    assert together.dtype == torch.float64
    torch.testing.assert_close(together[1:], swapped, rtol=1e-4, atol=1e-4)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["deg", "deg_vqfr"])
def test_unequal_or_float_pictures_are_not_compared(name: str, judges: dict[str, Judge]) -> None:
    """A batch of one does not stand for two, nor a float for a level."""
    x = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)

    with pytest.raises(ValueError, match="one shape"):
        judges[name].compute(x, x[:1])
    with pytest.raises(TypeError, match="give uint8"):
        judges[name].compute(x.float(), x)


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 1e-3, 0.5, 30, 90, 135, 179.999, 180])
def test_angles_of_known_vectors(degrees: float) -> None:
    """Small ones too, which an arccos in float32 takes for zero; no length matters."""
    turn = math.radians(degrees)
    x = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[math.cos(turn), math.sin(turn), 0.0]], dtype=torch.float64) * 0.2

    assert angles(x, y).item() == pytest.approx(degrees, rel=1e-7, abs=1e-12)


def test_an_arccos_in_float32_would_lose_small_angles() -> None:
    """The reason why the angle is computed otherwise: features 0.005 degrees apart."""
    turn = math.radians(0.005)
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(turn), math.sin(turn)]])

    assert (x * y).sum().acos().item() == 0
    assert angles(x, y).item() == pytest.approx(0.005, rel=1e-3)


def test_the_published_file_loads_without_counters_too(
    tmp_path: Path, weights: dict[str, Tensor], judges: dict[str, Judge]
) -> None:
    """Old versions of PyTorch saved none; the weights are the same, and so is their digest."""
    bare = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert len(bare) < len(weights)
    torch.save(bare, tmp_path / FILE.name)

    assert METRICS["deg"].load(tmp_path).digest == judges["deg"].digest
    assert len(judges["deg"].digest) == 64


def test_another_network_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """Whatever is missing is named, and nothing is loaded."""
    torch.save({k: v for k, v in weights.items() if "fc5" not in k}, tmp_path / FILE.name)

    with pytest.raises(CheckpointError, match=r"FaceResNet.*missing \(2\): fc5\.bias, fc5\.weight"):
        METRICS["deg"].load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its size, where to get it and where to put it: the folder given, or torch.hub's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for given, place in ((tmp_path, tmp_path), (None, tmp_path / "checkpoints")):
        with pytest.raises(CheckpointNotFoundError) as caught:
            METRICS["deg_vqfr"].load(given)
        assert str(caught.value).startswith(str(place / "resnet18_110.pth"))
        for said in ("103 MB", "https://drive.google.com/drive/folders/1k3RC", "put it there"):
            assert said in str(caught.value)


def test_torch_hub_s_cache_is_searched(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, judges: dict[str, Judge]
) -> None:
    """Where the message says that the file may be put."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / FILE.name).symlink_to(folder / FILE.name)

    assert METRICS["deg"].load().digest == judges["deg"].digest

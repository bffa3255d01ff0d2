"""The catalogue of metrics: every entry loads, and what it says of the metric is so."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoint import CheckpointNotFoundError
from models.metrics.brisque import Brisque
from models.metrics.catalog import METRICS, Judge, best_by, to_pixels
from models.metrics.fidelity import psnr
from models.metrics.lpips import load_lpips
from models.qalign.scorer import QAlign
from models.ranges import uint8_to_model
from pipelines.jobs.scorer_choice import ScorerChoice
from pipelines.jobs.scorers import describe
from tests.conftest import ROOT
from tests.support.qalign_checkpoint import write_checkpoint
from tests.support.training_sets import write_dists, write_lpips

# Metrics of faces, and those whose networks are large, have such tests beside their own.
FACES = {"deg", "deg_vqfr", "lmd", "lmd_vqfr", "identity_dlib", "landmarks_dlib"}
ELSEWHERE = {*FACES, "musiq", "clipiqa", "niqe"}
IMAGES = [n for n, metric in METRICS.items() if metric.kind == "image" and n not in ELSEWHERE]
WITH_WEIGHTS = ("lpips", "lpips_vgg", "dists", "qalign")
FORMULAS = {"psnr", "ssim", "ms_ssim", "colour", "indrmse", "indrmse_pmrf"}
WITHOUT_WEIGHTS = {*FORMULAS, "brisque", "identity_dlib", "landmarks_dlib"}  # to get
PAIRED = [name for name in IMAGES if METRICS[name].needs_reference]
SETS = [name for name, metric in METRICS.items() if metric.kind == "set"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write random weights in the published layouts, for the metrics that have any."""
    folders = {name: tmp_path_factory.mktemp(name) for name in WITH_WEIGHTS}
    write_lpips(folders["lpips"], "alex")
    write_lpips(folders["lpips_vgg"], "vgg")
    write_dists(folders["dists"])
    write_checkpoint(folders["qalign"])
    return folders


def pictures(side: int, seed: int = 0) -> Tensor:
    """Draw two smooth uint8 pictures with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 5, 5, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return (smooth + 8 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).byte()


@pytest.fixture(scope="module")
def judges(folders: dict[str, Path]) -> Callable[[str], Judge]:
    """Load each metric once."""
    return functools.cache(lambda name: METRICS[name].load(folders.get(name)))


def inputs(name: str, *drawn: Tensor) -> list[Tensor]:
    """Take what the metric compares of pictures and others, or the pictures alone."""
    return list(drawn[: 2 if METRICS[name].needs_reference else 1])


def assert_same(name: str, values: Tensor, others: Tensor) -> None:
    """Compare values of one metric: a formula's are of float64, a network's features of float32."""
    relative, absolute = (1e-5, 1e-6) if name in WITH_WEIGHTS else (1e-9, 1e-9)
    torch.testing.assert_close(values, others, rtol=relative, atol=absolute)


def extremes(side: int) -> Tensor:
    """Draw black, white, grey, texture of two neighbouring levels, and of 0 and 255."""
    drawn = pictures(side, 3)
    grey, texture = drawn[0, :1].expand(3, -1, -1), drawn[1] // 128
    black = torch.zeros_like(texture)
    return torch.stack([black, black + 255, grey, texture + 127, texture * 255])


@pytest.mark.parametrize("name", IMAGES)
def test_every_metric_judges_each_picture_by_itself(
    name: str, judges: Callable[[str], Judge]
) -> None:
    """A finite value for each of the smallest pictures, whatever is in the batch, in any order."""
    side = max(METRICS[name].min_side, 8)
    drawn = inputs(name, pictures(side), pictures(side, 1))
    judge = judges(name)
    values = judge.compute(*drawn)
    alone = torch.cat([judge.compute(*(some[n : n + 1] for some in drawn)) for n in range(2)])
    turned = judge.compute(*(some.flip(0) for some in drawn)).flip(0)

    assert values.shape == (2,)
    assert values.isfinite().all()
    assert_same(name, values, alone)
    assert_same(name, values, turned)


@pytest.mark.parametrize("name", IMAGES)
def test_a_digest_belongs_to_metrics_with_weights(
    name: str, folders: dict[str, Path], judges: Callable[[str], Judge]
) -> None:
    """A formula has none."""
    assert len(judges(name).digest) == (64 if name in folders or name == "brisque" else 0)


@pytest.mark.parametrize("name", PAIRED)
def test_a_picture_is_nearest_to_itself(name: str, judges: Callable[[str], Judge]) -> None:
    """At no distance, similar by one, 80 dB; any other picture is worse, from either side.

    So it is of pictures grey, flat, or at the ends of the range.
    """
    side = max(METRICS[name].min_side, 16)
    x = torch.cat([pictures(side)[:1], extremes(side)])
    perfect = {"psnr": 80.0, "ssim": 1.0, "ms_ssim": 1.0}.get(name, 0.0)
    judge, sign = judges(name), 1 if METRICS[name].higher_is_better else -1
    there, back = judge.compute(x, x.flip(0)), judge.compute(x.flip(0), x)

    assert judge.compute(x, x).tolist() == pytest.approx([perfect] * len(x), abs=1e-9)
    assert (sign * there < sign * perfect).all()
    assert_same(name, there, back)


@pytest.mark.parametrize("name", [name for name in IMAGES if not METRICS[name].needs_reference])
def test_extreme_pictures_leave_their_neighbours_values(
    name: str, judges: Callable[[str], Judge]
) -> None:
    """What has no value, such as one flat colour, is NaN itself and ends nothing."""
    x = torch.cat([pictures(32), extremes(32)])
    values = judges(name).compute(x)

    assert not values.isinf().any()
    assert_same(name, values[:2], judges(name).compute(x[:2]))


@pytest.mark.parametrize("name", [name for name in IMAGES if METRICS[name].min_side > 1])
def test_a_picture_below_the_smallest_side_is_refused(
    name: str, judges: Callable[[str], Judge]
) -> None:
    """By the metric itself, in a sentence with the side that it needs."""
    side = METRICS[name].min_side
    small = pictures(side)[..., 1:]

    with pytest.raises(ValueError, match=f"sides of at least {side}$"):
        judges(name).compute(*inputs(name, small, small))


@pytest.mark.parametrize("name", PAIRED)
def test_unequal_or_float_pictures_are_not_compared(
    name: str, judges: Callable[[str], Judge]
) -> None:
    """A batch of one does not stand for two, nor a float for a level."""
    x = pictures(max(METRICS[name].min_side, 16))

    with pytest.raises(ValueError, match="one shape"):
        judges(name).compute(x, x[:1])
    with pytest.raises(TypeError, match="give uint8"):
        judges(name).compute(x.float(), x)


@pytest.mark.parametrize("name", PAIRED)
def test_a_metric_gets_worse_as_pictures_leave_their_reference(
    name: str, judges: Callable[[str], Judge]
) -> None:
    """The direction is the one that the catalogue states: no picture is better than its own."""
    metric = METRICS[name]
    side = max(metric.min_side, 48)
    judge, hq = judges(name), pictures(side)
    noise = torch.randint(0, 32, hq.shape, generator=torch.Generator().manual_seed(2))
    noisy = (hq.int() + noise.int()).clamp(0, 255).byte()
    best, good, bad = (judge.compute(some, hq) for some in (hq, noisy, pictures(side, 1)))
    sign = 1 if metric.higher_is_better else -1

    assert (sign * best > sign * good).all()
    assert (sign * good > sign * bad).all()


def test_values_are_those_of_the_metrics_themselves(folders: dict[str, Path]) -> None:
    """The catalogue adds nothing: the range that LPIPS takes, the pixels that BRISQUE takes."""
    x, y = pictures(64), pictures(64, 1)
    lpips = load_lpips("alex", folders["lpips"])

    assert torch.equal(METRICS["psnr"].load().compute(x, y), psnr(x, y))
    assert torch.equal(
        METRICS["lpips"].load(folders["lpips"]).compute(x, y),
        lpips(uint8_to_model(x), uint8_to_model(y)),
    )
    assert METRICS["brisque"].load().compute(x).tolist() == Brisque().score(to_pixels(x))
    scores = QAlign.load(folders["qalign"]).score(to_pixels(x))
    found = METRICS["qalign"].load(folders["qalign"]).compute(x)
    assert found.tolist() == pytest.approx([score.value for score in scores])


@pytest.mark.parametrize("name", SETS)
def test_a_metric_of_sets_is_none_of_images(name: str) -> None:
    """It names its features and its distance, and each kind is refused by the other's loader."""
    metric = METRICS[name]

    assert metric.features
    assert metric.distance
    assert metric.against == "hq"
    with pytest.raises(ValueError, match=r"a metric of kind 'set'; load it by load_set\(\)"):
        metric.load()
    with pytest.raises(ValueError, match=r"a metric of kind 'image'; load it by load\(\)"):
        METRICS["psnr"].load_set()


def test_metrics_of_the_same_features_are_computed_alike() -> None:
    """One pass serves all of one name: the loader and the resize are the same."""
    for name in SETS:
        others = [other for other in SETS if METRICS[other].features == METRICS[name].features]
        assert len({(METRICS[n].loader, METRICS[n].resize) for n in others}) == 1
    assert {METRICS[name].features for name in SETS} == {
        "inception/clean",
        "inception/legacy_pytorch",
        "dinov2/vitl14",
    }


def test_the_best_checkpoint_is_chosen_in_the_direction_of_the_metric() -> None:
    """Less is better behind a "-"."""
    assert (best_by("psnr"), best_by("lpips")) == ("psnr", "-lpips")


@pytest.mark.parametrize("name", [name for name in METRICS if name not in WITHOUT_WEIGHTS])
def test_missing_weights_say_where_to_get_them(name: str, tmp_path: Path) -> None:
    """An empty folder is no damaged one; no other metric takes the place of one that it lacks."""
    with pytest.raises(CheckpointNotFoundError, match=r"get .*(https://|hf download)"):
        METRICS[name].digest(tmp_path)


def test_curation_describes_its_scorer_by_the_catalogue() -> None:
    """Sets scored before are recognised: name and digest are what they were."""
    info = describe(ScorerChoice(name="brisque"), "cpu")

    assert info.identity() == {
        "name": "brisque",
        "digest": "7177aa76fcc3bb7b6dc72234a7bce66bb6e94b656666001dc3ccb59b2cfd3f9f",
    }
    assert (info.scale, info.default_threshold) == ((0.0, 100.0), 40.0)
    assert not info.higher_is_better


def test_the_table_is_light() -> None:
    """Curation's workers score by BRISQUE without PyTorch in their memory."""
    program = (
        "import sys, models.metrics.catalog, models.metrics.brisque as b; b.Brisque(); "
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert printed.stdout.strip() == "False"

"""The catalogue of metrics: every entry loads, and what it says of the metric is so."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoint import CheckpointNotFoundError
from models.metrics.brisque import Brisque
from models.metrics.catalog import METRICS, best_by, to_pixels
from models.metrics.fidelity import MIN_SIDE, psnr
from models.metrics.lpips import VARIANTS, load_lpips
from models.qalign.scorer import QAlign
from models.ranges import uint8_to_model
from pipelines.jobs.scorer_choice import ScorerChoice
from pipelines.jobs.scorers import describe
from tests.conftest import ROOT
from tests.support.qalign_checkpoint import write_checkpoint
from tests.support.training_sets import write_lpips

# Metrics of faces have tests of their own: dlib's see none in drawn pictures, and the files of the
# others have 100 MB.
FACES = {"deg", "deg_vqfr", "lmd", "lmd_vqfr", "identity_dlib", "landmarks_dlib"}
IMAGES = [n for n, metric in METRICS.items() if metric.kind == "image" and n not in FACES]
PAIRED = [name for name in IMAGES if METRICS[name].needs_reference]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write random weights in the published layouts, for the metrics that have any."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("lpips", "lpips_vgg", "qalign")}
    write_lpips(folders["lpips"], "alex")
    write_lpips(folders["lpips_vgg"], "vgg")
    write_checkpoint(folders["qalign"])
    return folders


def pictures(side: int, seed: int = 0) -> Tensor:
    """Draw two smooth uint8 pictures with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 5, 5, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return (smooth + 8 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).byte()


@pytest.mark.parametrize("name", IMAGES)
def test_every_metric_judges_each_picture_by_itself(name: str, folders: dict[str, Path]) -> None:
    """From its smallest pictures on, a finite value for each, whatever else is in the batch."""
    metric = METRICS[name]
    judge = metric.load(folders.get(name))
    inputs = [pictures(max(metric.min_side, 8))]
    inputs += [pictures(max(metric.min_side, 8), 1)] if metric.needs_reference else []
    values = judge.compute(*inputs)
    alone = torch.cat([judge.compute(*(some[n : n + 1] for some in inputs)) for n in range(2)])

    assert values.shape == (2,)
    assert values.isfinite().all()
    torch.testing.assert_close(values, alone, rtol=1e-4, atol=1e-5)
    assert len(judge.digest) == (64 if name in folders or name == "brisque" else 0)


@pytest.mark.parametrize("name", PAIRED)
def test_a_metric_gets_worse_as_pictures_leave_their_reference(
    name: str, folders: dict[str, Path]
) -> None:
    """The direction is the one that the catalogue states: no picture is better than its own."""
    metric = METRICS[name]
    judge, hq = metric.load(folders.get(name)), pictures(168)
    noise = torch.randint(0, 32, hq.shape, generator=torch.Generator().manual_seed(2))
    noisy = (hq.int() + noise.int()).clamp(0, 255).byte()
    best, good, bad = (judge.compute(some, hq) for some in (hq, noisy, pictures(168, 1)))
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


def test_smallest_sides_are_those_that_the_metrics_enforce() -> None:
    """A side below is refused by the metric itself."""
    assert METRICS["ms_ssim"].min_side == MIN_SIDE
    assert METRICS["lpips"].min_side == VARIANTS["alex"].min_side
    assert METRICS["lpips_vgg"].min_side == VARIANTS["vgg"].min_side
    small = pictures(MIN_SIDE - 1)
    with pytest.raises(ValueError, match="at least 161"):
        METRICS["ms_ssim"].load().compute(small, small)


def test_the_best_checkpoint_is_chosen_in_the_direction_of_the_metric() -> None:
    """Less is better behind a "-"."""
    assert (best_by("psnr"), best_by("lpips")) == ("psnr", "-lpips")


def test_missing_weights_say_where_to_get_them(tmp_path: Path) -> None:
    """No other metric takes the place of one that cannot be loaded."""
    with pytest.raises(CheckpointNotFoundError, match="get https://download"):
        METRICS["lpips"].load(tmp_path)


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

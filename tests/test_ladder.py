"""Every metric on a ladder of known degradations: it gets worse with every rung, or it is blind.

The networks have random weights here. Even so their features keep what an image is, and a distance
of them grows with the damage; that people would agree takes the published weights.
"""

import pytest

from models.metrics.catalog import METRICS, Judge
from tests.support.ladders import LADDERS, PICTURES, rungs
from tests.support.training_sets import write_dists, write_lpips

WORSE, BLIND = "worse", "blind"
ALL_WORSE = dict.fromkeys(LADDERS, WORSE)
EXPECTED: dict[str, dict[str, str]] = {
    "psnr": ALL_WORSE,
    "ssim": ALL_WORSE,
    "ms_ssim": ALL_WORSE | {"cast": BLIND},  # a cast that leaves the luma, which is all it compares
    "lpips": ALL_WORSE,
    "lpips_vgg": ALL_WORSE,
    "dists": ALL_WORSE,
    "colour": ALL_WORSE,
    "indrmse": ALL_WORSE,
    "indrmse_pmrf": ALL_WORSE,
    # Its scores were fitted to kinds of damage of which a cast is none: no claim.
    "brisque": {ladder: WORSE for ladder in LADDERS if ladder != "cast"},
}
SIDE, SIDE_OF_NETWORKS = 176, 48


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judge]:
    """Load the metrics, networks with random weights in the published layouts."""
    folder = tmp_path_factory.mktemp("weights")
    write_dists(write_lpips(folder, "alex"))
    return {name: METRICS[name].load(folder) for name in EXPECTED}


@pytest.mark.parametrize(
    ("name", "ladder"), [(name, ladder) for name, row in EXPECTED.items() for ladder in row]
)
def test_a_metric_goes_down_the_ladder(name: str, ladder: str, judges: dict[str, Judge]) -> None:
    """Every rung is worse than the one before, or all are as good as the photograph itself."""
    metric, judge = METRICS[name], judges[name]
    side = SIDE_OF_NETWORKS if name in ("lpips", "lpips_vgg", "dists") else SIDE
    for picture in PICTURES:
        images, hq = rungs(picture, ladder, side)
        values = judge.compute(*([images, hq] if metric.needs_reference else [images]))
        worse = values.diff() * (-1 if metric.higher_is_better else 1)

        if EXPECTED[name][ladder] == WORSE:
            assert (worse > 0).all(), f"{picture}: {values.tolist()}"
        else:
            assert ((values - values[0]).abs() < 1e-4).all(), f"{picture}: {values.tolist()}"

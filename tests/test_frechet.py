"""The Frechet distance: the definition by a matrix root, its closed forms, memory, bad input."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.frechet import ENOUGH, Statistics, frechet_distance, read_statistics
from tests.test_neighborhood import LargestTensor

pytestmark = pytest.mark.filterwarnings("ignore:a Frechet distance of")


def features(seed: int, n: int, d: int) -> Tensor:
    """Draw correlated features of uneven widths around a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) / d**0.5
    widths = torch.linspace(0.1, 3, d)
    return torch.randn(n, d, generator=generator) @ mixing * widths + torch.arange(d) / d + seed


def by_matrix_root(x: Tensor, y: Tensor) -> float:
    """Follow the definition with SciPy's root of the product; its imaginary part is dropped."""
    a, b = x.double().numpy(), y.double().numpy()
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(c1 @ c2))
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(c1) + np.trace(c2) - 2 * np.trace(root))


@pytest.mark.parametrize(("n", "m"), [(300, 400), (65, 400), (64, 90)])
def test_it_is_the_definition(n: int, m: int) -> None:
    """With more images than features, and about as many, it equals the root of the product."""
    x, y = features(0, n, 64), features(1, m, 64)

    assert frechet_distance(x, y) == pytest.approx(by_matrix_root(x, y), rel=1e-7)


def test_fewer_images_than_features_need_no_added_identity() -> None:
    """Of singular covariances the root is unsure at 1e-5; the singular values are not."""
    x, y = features(0, 30, 64), features(1, 40, 64)
    a, b = (some.double() - some.double().mean(0) for some in (x, y))
    kernel = (a @ b.T) / (29 * 39) ** 0.5
    nuclear = np.sqrt(np.linalg.eigvalsh((kernel @ kernel.T).numpy()).clip(0)).sum()
    shift = (x.double().mean(0) - y.double().mean(0)).square().sum()
    exact = float(shift + a.square().sum() / 29 + b.square().sum() / 39 - 2 * nuclear)

    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(by_matrix_root(x, y), rel=1e-4)


def test_it_is_known_in_closed_form_for_shifts_and_scales() -> None:
    """A shift by v costs |v|^2, a scale by s costs (s - 1)^2 of the trace; a set itself nothing."""
    x = features(0, 500, 16).double()
    shift, trace = torch.linspace(-1, 2, 16).double(), float(x.var(0).sum())
    centre = x.mean(0)

    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()))
    assert frechet_distance(x, centre + 3 * (x - centre)) == pytest.approx(4 * trace)


def test_order_and_sides_do_not_matter() -> None:
    """It is of sets: symmetric, and the same in any order."""
    x, y = features(0, 200, 32), features(1, 150, 32)
    distance = frechet_distance(x, y)

    assert frechet_distance(y, x) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(x.flip(0), y[torch.randperm(150)]) == pytest.approx(distance, rel=1e-8)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A triangle that took in the features a few at a time is that of all of them."""
    x, y = features(0, 1000, 24), features(1, 700, 24)
    at_once = frechet_distance(x, y)
    monkeypatch.setattr("models.metrics.frechet.ROWS", 50)

    assert frechet_distance(x, y) == pytest.approx(at_once, rel=1e-9)


def test_no_matrix_of_all_pairs_is_formed() -> None:
    """Nothing is much larger than the features, whatever n and m are."""
    x, y = torch.randn(20_000, 8), torch.randn(30_000, 8)
    with LargestTensor() as largest:
        frechet_distance(x, y)

    assert largest.elements <= 30_000 * 8


def test_few_images_are_warned_about() -> None:
    """Below 2,048, by their number; not with enough, and not of a file that has no number."""
    few, enough = features(0, ENOUGH - 1, 4), features(1, ENOUGH, 4)
    for given in (few, Statistics.of(few)):
        with pytest.warns(UserWarning, match="of 2047 images, below 2048: it is biased upwards"):
            frechet_distance(enough, given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(enough, Statistics.of(few)._replace(images=None))


def test_fewer_images_score_higher() -> None:
    """Which is the bias that the warning speaks of: one distribution, and no distance expected."""
    x = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    distances = [frechet_distance(x[:n], x[2000 : 2000 + n]) for n in (100, 500, 2000)]

    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 10 * distances[2]


def test_published_statistics_are_a_reference(tmp_path: Path) -> None:
    """A file of mu and sigma gives the distance that its features give."""
    x, y = features(0, 300, 32), features(1, 20, 32)
    for name, some in (("full", x), ("singular", y)):
        values = some.double().numpy()
        np.savez(
            tmp_path / f"{name}.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False), n=1
        )
    full, singular = (read_statistics(tmp_path / f"{n}.npz") for n in ("full", "singular"))
    expected = frechet_distance(x, y)

    assert frechet_distance(y, full) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(x, singular) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(full, singular) == pytest.approx(expected, rel=1e-6)


def _no_covariance() -> dict[str, np.ndarray]:
    return {"mu": np.zeros(3), "sigma": -np.eye(3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(3)}, "sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mean \[3\] and covariance \[4, 4\]"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        (_no_covariance(), "no covariance: .*eigenvalues from -1 to -1"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "asymmetric by 1"),
    ],
)
def test_files_without_statistics_are_refused(
    content: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    """The message names the file, what is wrong, and a file that would do."""
    np.savez(tmp_path / "reference.npz", **content)
    with pytest.raises(CheckpointError, match=rf"reference\.npz: .*{message}.*ffhq_clean"):
        read_statistics(tmp_path / "reference.npz")


def test_missing_and_damaged_files_are_told_apart(tmp_path: Path) -> None:
    """A file that is not there, and one that is cut off."""
    with pytest.raises(CheckpointNotFoundError, match=r"none\.npz: no such file; .*ffhq_clean"):
        read_statistics(tmp_path / "none.npz")
    np.savez(tmp_path / "cut.npz", mu=np.zeros(3), sigma=np.eye(3))
    whole = (tmp_path / "cut.npz").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"version https://git-lfs"):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cut\.npz: no statistics"):
            read_statistics(tmp_path / "cut.npz")


def test_features_that_do_not_fit_are_refused() -> None:
    """By their shapes, or because a value is not finite."""
    x = features(0, 10, 4)
    with pytest.raises(ValueError, match=r"features \[1, 4\]"):
        frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match="features of 4 and of 3 values"):
        frechet_distance(x, x[:, :3])
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(x, x / torch.zeros(4))

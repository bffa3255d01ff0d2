"""From what is measured to a summary: distances of sets, paired differences, digests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.checkpoint import CheckpointNotFoundError
from models.metrics.catalog import METRICS, Judge
from pipelines.evaluate import bootstrap, judges
from pipelines.evaluate.bootstrap import mean_of_defined, resampled_means
from pipelines.evaluate.differences import paired
from pipelines.evaluate.summary import Summary, Value
from tests.support.evaluate_jobs import evaluate, write_pictures

COUNT = 12
OF_INCEPTION, OF_DINOV2 = ("fid", "fid_legacy"), ("fid_dinov2", "mmd_dinov2")
SETS = (*OF_INCEPTION, *OF_DINOV2)


def load_tiny(variant: str, folder: Path | None, device: str) -> Judge:
    """Load a network of 6 features, the mean and the deviation of each channel.

    Its weights are a file, whose bytes are their digest; without a folder it needs none.

    Raises:
        CheckpointNotFoundError: no file in the folder.
    """
    if folder is not None and not (folder / "tiny").exists():
        raise CheckpointNotFoundError(f"{folder / 'tiny'}: no such file")

    def features(images: Tensor) -> Tensor:
        levels = images.float() / 255
        return torch.cat([levels.mean(dim=(2, 3)), levels.std(dim=(2, 3))], dim=1)

    return Judge(features, "" if folder is None else (folder / "tiny").read_text())


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all metrics of sets a small network, with their own distances."""
    for name, metric in METRICS.items():
        if metric.kind == "set":
            loaded = replace(metric, loader=f"{__name__}:load_tiny")
            monkeypatch.setitem(METRICS, name, loaded)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write HQ pictures, two copies with the same noise, and one with more."""
    root = tmp_path_factory.mktemp("pictures")
    noise = {"hq": 0, "clean": 4, "same": 4, "noisy": 40}
    return {name: write_pictures(root / name, COUNT, noise=x) for name, x in noise.items()}


def of_sets(folders: dict[str, Path], output: Path, **fields: object) -> Summary:
    """Evaluate three methods by distances of whole sets."""
    methods = {name: folders[name] for name in ("clean", "same", "noisy")}
    given = {"reference": folders["hq"], "metrics": SETS, **fields}
    return evaluate(output, methods, **given)


@pytest.mark.usefixtures("tiny")
def test_distances_of_sets_have_paired_intervals(folders: dict[str, Path], tmp_path: Path) -> None:
    """Equal pictures differ by exactly nothing; the interval of a distance lies around it."""
    summary = of_sets(folders, tmp_path / "out", set_bootstrap=20)
    found = {(one.metric, one.first, one.second): one for one in summary.differences}

    for name in SETS:
        same, noisy = found[name, "clean", "same"], found[name, "clean", "noisy"]
        values = {method: one.values[name] for method, one in summary.methods.items()}
        assert (same.value, same.low, same.high, same.is_clear) == (0, 0, 0, False)
        assert noisy.value == pytest.approx(_number(values["clean"]) - _number(values["noisy"]))
        assert noisy.low < noisy.value < noisy.high
        assert noisy.n == COUNT
        for one in values.values():
            assert one.low is not None
            assert one.high is not None
            assert one.low < _number(one) < one.high


def _number(value: Value) -> float:
    assert value.value is not None
    return value.value


@pytest.mark.usefixtures("tiny")
def test_without_set_bootstrap_no_interval_is_invented(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """By default distances of sets have neither intervals nor differences."""
    summary = of_sets(folders, tmp_path / "out")

    assert summary.differences == []
    assert {one.low for method in summary.methods.values() for one in method.values.values()} == {
        None
    }


@pytest.mark.usefixtures("tiny")
def test_statistics_of_another_network_give_no_number(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A file of 4 values for a network of 6: the metric has no value, and the note says why."""
    np.savez(tmp_path / "other.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(tmp_path / "good.npz", mu=np.zeros(6), sigma=np.eye(6))
    wrong, good = (
        of_sets(folders, tmp_path / name, metrics=("fid",), distribution=tmp_path / f"{name}.npz")
        for name in ("other", "good")
    )
    value = wrong.methods["clean"].values["fid"]

    assert value.value is None
    assert value.note == "features of 6 and of 4 values: of two different networks"
    assert _number(good.methods["clean"].values["fid"]) > 0


@pytest.mark.usefixtures("tiny")
def test_statistics_are_of_fid_unless_a_metric_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published file is of one resize: no other metric is compared with it by default."""
    monkeypatch.setattr(judges, "METRICS", {name: METRICS[name] for name in OF_INCEPTION})
    file, hq = tmp_path / "good.npz", folders["hq"]
    np.savez(file, mu=np.zeros(6), sigma=np.eye(6))
    given = {"reference": hq, "distribution": file}
    default = evaluate(tmp_path / "default", {"clean": folders["clean"]}, metrics=(), **given)
    other = ("fid_legacy",)
    named = evaluate(tmp_path / "named", {"clean": folders["clean"]}, metrics=other, **given)

    assert default.metrics() == ["fid"]
    assert "taken for that of fid," in default.missing["fid_legacy"]
    assert tuple(named.metrics()) == other


@pytest.mark.usefixtures("tiny")
def test_one_picture_is_no_set(folders: dict[str, Path], tmp_path: Path) -> None:
    """A single picture has a PSNR, but no distance of sets, and nothing fails."""
    hq, one = (write_pictures(tmp_path / name, 1) for name in ("hq", "one"))
    summary = evaluate(tmp_path / "out", {"one": one}, reference=hq, metrics=("psnr", "fid"))

    assert summary.methods["one"].values["psnr"].value == 80
    assert summary.methods["one"].values["fid"].value is None
    assert "at least 2" in summary.methods["one"].values["fid"].note


@pytest.mark.usefixtures("tiny")
def test_metrics_of_one_network_take_the_weights_of_the_first(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Weights in the folder of `fid_dinov2` serve `mmd_dinov2`, in the worker as in the command."""
    weights = tmp_path / "weights"
    (weights / "fid_dinov2").mkdir(parents=True)
    (weights / "fid_dinov2" / "tiny").write_text("d" * 64)
    summary = of_sets(folders, tmp_path / "out", metrics=OF_DINOV2, weights=weights)
    values = summary.methods["clean"].values

    assert {values[name].fingerprint.weights for name in OF_DINOV2} == {"d" * 64}


def test_differences_of_many_methods_are_those_of_each_two() -> None:
    """All pairs are resampled at once, each on the pictures that its two methods have."""
    rng = np.random.default_rng(5)
    columns = {name: rng.normal(size=30) for name in "abc"}
    columns["b"][:7] = np.nan
    columns["c"][5:9] = np.nan
    together = list(paired("psnr", columns, resamples=40))
    apart = [
        next(paired("psnr", {name: columns[name] for name in pair}, resamples=40))
        for pair in ("ab", "ac", "bc")
    ]

    for one, same in zip(together, apart, strict=True):  # BLAS rounds by the number of columns
        assert (one.value, one.low, one.high) == pytest.approx((same.value, same.low, same.high))
    assert [one.n for one in together] == [23, 26, 21]


@pytest.mark.parametrize("metric", ["psnr", "indrmse_pmrf"])
def test_equal_methods_differ_by_exactly_nothing(metric: str) -> None:
    """However sums are rounded, a copy of a method is neither better nor worse."""
    values = np.random.default_rng(8).uniform(0.1, 1, size=37)
    others = {f"other-{i}": values + 0.1 * i for i in range(1, 4)}
    columns = {"a": values, **others, "copy": values.copy(), "zero": 0 * values, "too": 0 * values}
    found = {(one.first, one.second): one for one in paired(metric, columns, resamples=60)}

    for pair in (("a", "copy"), ("zero", "too")):
        assert (found[pair].value, found[pair].low, found[pair].high) == (0, 0, 0)
    assert found["a", "other-1"].is_clear


def test_nobody_is_compared_on_no_picture() -> None:
    """Two methods without a common picture that has a value have no difference."""
    half = np.array([1.0, np.nan])

    assert list(paired("psnr", {"a": half, "b": half[::-1]}, resamples=40)) == []


def test_root_means_are_compared_as_roots() -> None:
    """The difference of PMRF's IndRMSE is that of the roots of means, not of the means."""
    columns = {"a": np.array([9.0, 25.0]), "b": np.array([4.0, 0.0])}
    found = next(paired("indrmse_pmrf", columns, resamples=10))

    assert found.value == pytest.approx(17**0.5 - 2**0.5)


def test_draws_do_not_depend_on_the_memory_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept, or drawn anew block by block, a resample holds the same images."""
    columns = np.random.default_rng(3).normal(size=(11, 2))
    kept = resampled_means(columns, 25, seed=9)
    monkeypatch.setattr(bootstrap, "BLOCK", 30)

    np.testing.assert_allclose(resampled_means(columns, 25, seed=9), kept, rtol=1e-12)
    assert abs(kept.mean() - mean_of_defined(columns.ravel())) < 0.2


def test_the_digest_of_pictures_covers_their_sizes(tmp_path: Path) -> None:
    """Grey pictures of 16 x 32 and 32 x 16 have the same bytes, and are other pictures."""
    summaries = []
    for size in ((16, 32), (32, 16)):
        folder = tmp_path / "{} x {}".format(*size)
        folder.mkdir()
        Image.new("RGB", size, (90, 90, 90)).save(folder / "face.png")
        summaries.append(
            evaluate(folder / "out", {"a": folder / "face.png"}, reference=folder / "face.png")
        )
    wide, high = summaries

    assert wide.test_set.keys == high.test_set.keys
    assert wide.test_set.hq != high.test_set.hq
    assert wide.methods["a"].pixels != high.methods["a"].pixels

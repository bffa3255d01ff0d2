"""Distances of whole sets through the whole job, with the features of a small network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.evaluate.summary import Value
from tests.support.evaluate_jobs import evaluate, load_small_network, small_sets, write_pictures

COUNT = 6


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have FID take a small network; returns how many pictures each pass of it had."""
    return small_sets(monkeypatch)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Write HQ pictures, those of two methods, and another set."""
    for name, noise in (("hq", 0), ("a", 5), ("b", 20)):
        write_pictures(tmp_path / name, COUNT, noise=noise)
    write_pictures(tmp_path / "ffhq", 9, noise=3)
    return tmp_path


def distances(given: Path, output: str = "out", **fields: Any) -> dict[str, Value]:
    """Return FID by method."""
    methods = fields.pop("methods", {name: given / name for name in "ab"})
    fields = {"reference": given / "hq", "metrics": ("fid",), **fields}
    summary = evaluate(given / output, methods, **fields)
    return {name: one.values["fid"] for name, one in summary.methods.items()}


def test_a_set_has_no_distance_from_itself(given: Path, passes: list[int]) -> None:
    """And a noisier one is further away than a less noisy one."""
    found = distances(given, methods={n: given / n for n in ("hq", "a", "b")})

    assert found["hq"].value == pytest.approx(0, abs=1e-9)
    assert 0 < (found["a"].value or 0) < (found["b"].value or 0)


def test_the_features_of_the_reference_are_computed_once(given: Path, passes: list[int]) -> None:
    """For two methods, and not again for a third one."""
    both = distances(given)
    assert sum(passes) == 3 * COUNT
    three = distances(given, methods={n: given / n for n in ("a", "b", "ffhq")}, common=True)
    assert sum(passes) == 4 * COUNT

    assert {name: three[name] for name in both} == both


def test_another_set_is_one_set_for_all_methods(given: Path, passes: list[int]) -> None:
    """Its digest stands in the fingerprint in the place of the HQ pictures'."""
    with_hq, with_other = distances(given), distances(given, distribution=given / "ffhq")
    hq, other = (found["a"].fingerprint.reference for found in (with_hq, with_other))
    turned = distances(given, "turned", methods={"b": given / "b", "a": given / "a"})

    assert sum(passes) == (3 * COUNT + 9) + 3 * COUNT
    assert hq != other == with_other["b"].fingerprint.reference
    assert turned == with_hq


def test_statistics_give_the_value_of_their_set(given: Path, passes: list[int]) -> None:
    """A file with the mean and the covariance of a folder's features in its place."""
    network = load_small_network("clean", None, "cpu")
    levels = [np.asarray(Image.open(path)) for path in sorted((given / "ffhq").iterdir())]
    rows = network.compute(torch.from_numpy(np.stack(levels)).permute(0, 3, 1, 2)).double().numpy()
    np.savez(given / "ffhq.npz", mu=rows.mean(axis=0), sigma=np.cov(rows.T))
    by_folder = distances(given, distribution=given / "ffhq")
    by_file = distances(given, distribution=given / "ffhq.npz")

    for name, one in by_folder.items():
        assert by_file[name].value == pytest.approx(one.value, rel=1e-3)
        assert by_file[name].fingerprint.reference != one.fingerprint.reference


def test_few_pictures_are_noted(given: Path, passes: list[int]) -> None:
    """A Frechet distance depends on their number."""
    assert distances(given)["a"].note.startswith("a Frechet distance of 6 images, below 2048")


def test_resamples_give_an_interval(given: Path, passes: list[int]) -> None:
    """If they are asked for, the same in every run."""
    first, second = (distances(given, name, set_bootstrap=20)["a"] for name in ("one", "two"))

    assert distances(given)["a"].low is None
    assert first == second
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.high


def test_one_picture_is_no_set(given: Path, passes: list[int]) -> None:
    """It has no covariance: the value is missing, and the note says why."""
    for name in ("hq", "a"):
        write_pictures(given / "one" / name, 1)
    methods = {"a": given / "one" / "a"}
    found = distances(given, methods=methods, reference=given / "one" / "hq")["a"]

    assert found.value is None
    assert "n at least 2" in found.note

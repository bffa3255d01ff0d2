"""Evaluation where everything lies in a bucket: the numbers are those of a disk."""

from pathlib import Path

import pytest

from infra.errors import UsageError
from infra.paths import read_if_there
from pipelines.evaluate.job import Evaluation
from tests.support.curation_jobs import InProcess
from tests.support.encoding_jobs import Stopping
from tests.support.evaluate_jobs import evaluate, job, small_sets, write_pictures
from tests.support.faulty_proxy import FaultyProxy
from tests.support.in_a_bucket import uploaded

METRICS = ("psnr", "brisque", "fid")


def test_a_killed_evaluation_is_finished_from_the_bucket_alone(
    tmp_path: Path, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures, statistics of what is measured, features, tables and page are there."""
    small_sets(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, noise in (("hq", 0), ("a", 5)):
        write_pictures(tmp_path / name, noise=noise)
    disk = evaluate(
        tmp_path / "out", {"a": tmp_path / "a"}, reference=tmp_path / "hq", metrics=METRICS
    )
    for name in ("hq", "a"):
        uploaded(tmp_path / name, f"s3://tests/evaluate/{name}")
    config = job(
        "s3://tests/evaluate/out",
        {"a": "s3://tests/evaluate/a"},
        reference="s3://tests/evaluate/hq",
        metrics=METRICS,
    )
    with pytest.raises(KeyboardInterrupt):
        Evaluation(config).run(Stopping(2))
    engine = InProcess()
    summary = Evaluation(config).run(engine)

    assert 0 < len(engine.units) < 4
    assert summary.test_set == disk.test_set
    assert summary.methods["a"].values == disk.methods["a"].values
    folder = Evaluation(config).folder
    assert read_if_there(folder / "values.parquet") == (
        (tmp_path / "out" / "values.parquet").read_bytes()
    )
    assert read_if_there(folder / "report.html") is not None

    again = InProcess()
    assert Evaluation(config).run(again) == summary
    assert again.units == []
    with pytest.raises(UsageError, match=r"--restored a s3://tests/evaluate/none: no such"):
        evaluate("s3://tests/evaluate/out", {"a": "s3://tests/evaluate/none"})

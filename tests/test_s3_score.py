"""`python -m pipelines.score` with its table, its images and its scorer in a bucket."""

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import growing
from infra.errors import UserError
from infra.paths import AnyPath, path_of
from infra.s3.client import forget
from pipelines.jobs.score_file import read_scores
from pipelines.score import __main__ as score
from tests.conftest import ROOT, Pictures
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3_server import BUCKET
from tests.test_s3_inputs import put, uploaded
from tests.test_score import DIES, arguments, rows_of


@pytest.fixture
def output(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AnyPath]:
    """The name of a file of scores in an empty place of the bucket; this machine has a cache."""
    on_machine("one", tmp_path, monkeypatch)
    s3_proxy.harmless()
    place = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    yield path_of(f"s3://{BUCKET}/{place}/scores.json")
    s3_proxy.harmless()


def on_machine(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as on a machine of this name, whose disk nobody else has."""
    (folder / name).mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / name))


def scored(images: object, output: AnyPath) -> dict[str, bytes]:
    """Score images; returns the table and the file of scores."""
    assert score.main(arguments(images, output)) == 0
    return {name: output.with_name(name).read_bytes() for name in ("scores.csv", "scores.json")}


def test_scores_in_a_bucket_are_those_on_a_disk(
    output: AnyPath, pictures: Pictures, tmp_path: Path
) -> None:
    """Byte for byte; of images in the bucket too, but for the stamps; and a scorer reads them."""
    source = pictures(9, 60, 50)
    local = scored(source, tmp_path / "scores.json")
    assert scored(source, output) == local
    put(output.parent / "photos" / "text.png", b"no image")
    again = scored(uploaded(source, output.parent), output.parent / "other" / "scores.json")
    assert again["scores.json"] == local["scores.json"]
    assert read_scores(str(output)) == read_scores(str(tmp_path / "scores.json"))


@pytest.mark.parametrize(("machine", "sent"), [("one", 0), ("two", 24)])
def test_a_killed_run_goes_on_on_any_machine(
    output: AnyPath,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    machine: str,
    sent: int,
) -> None:
    """Behind its last line, or behind what was sent; the table is that of an unbroken run."""
    source = pictures(30, 60, 50)
    whole = scored(source, tmp_path / "scores.json")
    often = f"from infra import growing; growing.EVERY = {0 if sent else 1e9}; growing.SHARE = 0\n"
    command = [sys.executable, "-c", often + DIES, *arguments(source, output)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(output.with_suffix(".csv").read_bytes().splitlines()) == 1 + sent

    on_machine(machine, tmp_path, monkeypatch)
    capsys.readouterr()
    assert scored(source, output) == whole
    assert len(capsys.readouterr().out.splitlines()) == 30 - 3 * 8


def test_a_store_that_is_away_costs_no_score(
    output: AnyPath,
    s3_proxy: FaultyProxy,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The images are scored; at the end it is said where the table is; the next run sends it."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(growing, "EVERY", 0.0)
    monkeypatch.setattr(growing, "SHARE", 0.0)
    source = pictures(9, 60, 50)
    whole = scored(source, tmp_path / "scores.json")
    s3_proxy.faults = [Fault(99, "PUT", "/scores.csv", skip=1, status=500, code="InternalError")]
    capsys.readouterr()
    with pytest.raises(UserError, match=rf"kept in {tmp_path}/one/.*the next run on this machine"):
        scored(source, output)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 9
    assert "kept in" in said.err
    assert len(output.with_suffix(".csv").read_bytes().splitlines()) == 1

    s3_proxy.harmless()
    forget()  # a client that has met a busy server asks less often
    assert scored(source, output) == whole
    assert capsys.readouterr().out == ""


def test_a_table_that_was_deleted_is_begun_anew(
    output: AnyPath, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    """What this machine has of it does not come back."""
    source = pictures(2, 60, 50)
    first = scored(source, output)
    output.with_suffix(".csv").unlink()
    capsys.readouterr()
    assert scored(source, output) == first
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_images_of_a_store_that_fails_end_the_run(
    output: AnyPath, s3_proxy: FaultyProxy, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image gets a reason that it has not; what was scored before is in the table."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    source = uploaded(pictures(9, 60, 50), output.parent)
    s3_proxy.faults = [Fault(99, "GET", "photo-07", status=400, code="ExpiredToken")]
    with pytest.raises(UserError, match=r"photo-07\.png: the credentials have expired"):
        scored(source, output)
    table = output.with_suffix(".csv").read_text()
    assert {row["drop_reason"] for row in rows_of(table)} <= {""}

    s3_proxy.harmless()
    assert len(rows_of(scored(source, output)["scores.csv"].decode())) == 9

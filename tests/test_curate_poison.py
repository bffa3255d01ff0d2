"""Images that kill the process that opens them: found, named, dropped; the job goes on.

The processes and the signals are real; what stands for a fault of a codec is a decoder that
strikes its own process where a file ends in `POISON`.
"""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datasets import decoding
from datasets.verify import problems
from infra.errors import UserError
from pipelines.curate import pack, scoring
from pipelines.curate.job import Curation
from pipelines.jobs import stage
from pipelines.jobs.attempts import LIMIT, UNEXPLAINED
from tests.conftest import PATIENCE, Pictures, program
from tests.support.curation_jobs import config, published, run
from tests.support.forked import Forked

POISON = b"POISON"


@pytest.fixture
def poisoned(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write four photographs, two of them poison, and arm the decoder of both stages."""
    source = pictures(4)
    for name in ("photo-01.png", "photo-03.png"):
        with (source / name).open("ab") as file:
            file.write(POISON)
    arm(monkeypatch, scoring, "decode_picture")
    arm(monkeypatch, pack, "decode")
    return source


def arm(monkeypatch: pytest.MonkeyPatch, stage: Any, name: str) -> None:
    """Let a stage's decoder kill its process, as the kernel does where memory runs out."""

    def decode(data: bytes, max_pixels: int) -> Any:
        if data.endswith(POISON):
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(decoding, name)(data, max_pixels)

    monkeypatch.setattr(stage, name, decode)


def crashed(folder: Path) -> list[str]:
    """Return the images that a set dropped because they killed workers."""
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    return [row["key"] for row in rows if row["drop_reason"] == "crashed"]


@pytest.mark.forks
def test_poison_is_dropped_by_name_and_the_rest_is_kept(
    poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four images of one unit kill the scoring: each costs two deaths, once known."""
    monkeypatch.setattr(scoring, "UNITS", 1)
    engine = Forked()
    Curation(config(poisoned, tmp_path / "set", max_bad=1)).run(engine)

    assert crashed(tmp_path / "set") == ["photo-01", "photo-03"]
    assert engine.deaths == 1 + 2 * LIMIT
    assert list(problems(tmp_path / "set")) == []
    assert not (tmp_path / "set" / ".curate" / "attempts").exists()
    monkeypatch.undo()
    for name in ("photo-01.png", "photo-03.png"):
        (poisoned / name).write_bytes(b"")
    run(poisoned, tmp_path / "without", max_bad=1)
    shards = [path.name for path in (tmp_path / "without").glob("*.tar")]
    assert {name: published(tmp_path / "set")[name] for name in shards} == {
        name: published(tmp_path / "without")[name] for name in shards
    }


@pytest.mark.forks
def test_an_image_that_kills_the_packing_is_dropped_too(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored without harm, it kills what packs it: the set is cut again without its patches."""
    source = pictures(4)
    with (source / "photo-01.png").open("ab") as file:
        file.write(POISON)
    arm(monkeypatch, pack, "decode")
    full = shutil.disk_usage(tmp_path)._replace(free=1)  # so that scoring keeps no PNGs for packing
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    engine = Forked()
    Curation(config(source, tmp_path / "set", threshold=200.0, max_bad=1)).run(engine)

    assert crashed(tmp_path / "set") == ["photo-01"]
    assert engine.deaths >= 1 + LIMIT
    assert list(problems(tmp_path / "set")) == []
    assert run(source, tmp_path / "set", threshold=200.0, max_bad=1).units == []


@pytest.mark.forks
def test_a_job_killed_many_times_blames_no_image(
    poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaths count while the job survives them: whoever kills the job kills no image's name."""
    for _ in range(LIMIT + 3):
        with pytest.raises(KeyboardInterrupt):
            Curation(config(poisoned, tmp_path / "set")).run(Forked(survives=False))
    monkeypatch.undo()
    run(poisoned, tmp_path / "set")
    run(poisoned, tmp_path / "fresh")

    assert crashed(tmp_path / "set") == []
    assert published(tmp_path / "set") == published(tmp_path / "fresh")


@pytest.mark.forks
def test_deaths_between_images_end_the_job_with_a_sentence(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no image is under way, none is dropped, and nothing is retried for ever."""
    source = pictures(2)

    def strike(_: object) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "parquet_bytes", strike)
        engine = Forked()
        with pytest.raises(UserError, match=r"no image is to blame.*--workers"):
            Curation(config(source, tmp_path / "set")).run(engine)

    assert engine.deaths == 1 + UNEXPLAINED
    run(source, tmp_path / "set")
    assert crashed(tmp_path / "set") == []


STRIKE = """
import os, signal, sys

def watch(event, arguments):
    if event == "open" and "poison" in str(arguments[0]) and "default_worker" in str(sys.orig_argv):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
"""


class Stillborn:
    """A worker whose process dies while it is made."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Never be called."""
        raise NotImplementedError


@pytest.mark.forks
def test_a_worker_that_dies_while_it_is_made_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would start one process after the other for ever; no image is to blame."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = pickle.dumps((Stillborn, (), "this run"))
    results = []
    for _ in range(50):
        if results:
            break
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, stage.do_unit({"unit": "{}"}, made)["result"].encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            results = [json.loads(text) for text in answer]
        os.waitpid(child, 0)

    assert "killed again and again" in results[0]["failure"]


@pytest.mark.slow
def test_ray_starts_another_worker_and_the_image_is_named(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with Ray's own processes: SIGKILL whenever one of them opens a certain file."""
    source = pictures(3)
    (source / "photo-01.png").rename(source / "poison.png")
    (tmp_path / "sitecustomize.py").write_text(STRIKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job: list[str | Path] = ["--input", source, "--output", tmp_path / "set", "--max-bad", "1"]
    job += ["--size", "64", "--stride", "48", "--threshold", "200", "--no-track", "--workers", "1"]
    process = program("pipelines.curate", job, tmp_path)
    out, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, out + errors
    assert crashed(tmp_path / "set") == ["poison"]
    assert "1 crashed" in out

"""What is measured stays: a job that goes on ends as an unbroken one, however it was left."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from pipelines.evaluate import worker
from pipelines.evaluate.job import Evaluation
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.evaluate_jobs import SIDE, evaluate, job, numbers, small_sets, write_pictures
from tests.support.forked import Forked

COUNT = 5
POISON = b"POISON"
WRITTEN = ("summary.json", "values.parquet")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Write HQ pictures and those of two methods."""
    for name, noise in (("hq", 0), ("a", 5), ("b", 20)):
        write_pictures(tmp_path / name, COUNT, noise=noise)
    return tmp_path


def run(given: Path, methods: str = "ab", **fields: Any) -> InProcess:
    """Evaluate into the folder "out"; returns the engine that did it."""
    engine = fields.pop("engine", None) or InProcess()
    folders = {name: given / name for name in methods}
    evaluate(given / "out", folders, engine, reference=given / "hq", **fields)
    assert isinstance(engine, InProcess)
    return engine


def written(given: Path) -> list[bytes]:
    """Return the bytes of what an evaluation writes."""
    return [(given / "out" / name).read_bytes() for name in WRITTEN]


def anew(given: Path, **fields: Any) -> list[bytes]:
    """Return what an unbroken run writes into an output of the same name."""
    kept = given / "kept"
    (given / "out").rename(kept)
    run(given, **fields)
    found = written(given)
    shutil.rmtree(given / "out")
    kept.rename(given / "out")
    return found


def measured(engine: InProcess) -> set[tuple[str, str]]:
    """Return the roles and keys that an engine measured."""
    return {
        (role, group["key"])
        for _, unit in engine.units
        for group in unit["groups"]
        for role in group["pictures"]
    }


def test_a_second_run_measures_nothing(given: Path) -> None:
    """And writes the same bytes."""
    run(given)
    before = written(given)

    assert run(given).units == []
    assert written(given) == before


def test_another_metric_is_measured_alone(given: Path) -> None:
    """The pictures are read again for it, and nothing else of them is computed."""
    run(given, metrics=("psnr",))
    engine = run(given, metrics=("psnr", "brisque"))
    wanted = [
        names
        for _, unit in engine.units
        for group in unit["groups"]
        for names in group["values"].values()
    ]

    assert {role for role, _ in measured(engine)} == {"=a", "=b"}  # BRISQUE needs no HQ picture
    assert wanted == [("brisque",)] * 2 * COUNT
    assert written(given) == anew(given, metrics=("psnr", "brisque"))


def test_another_method_is_measured_alone(given: Path) -> None:
    """With the HQ pictures that it is compared with."""
    run(given, methods="a")
    engine = run(given)

    assert {role for role, _ in measured(engine)} == {"=b", "hq"}
    assert written(given) == anew(given)


@pytest.mark.parametrize(("changed", "again"), [("a", {"=a", "hq"}), ("hq", {"=a", "=b", "hq"})])
def test_a_changed_file_is_measured_anew(given: Path, changed: str, again: set[str]) -> None:
    """And so is whatever was compared with it."""
    run(given)
    picture(30, SIDE, SIDE).save(given / changed / "face-2.png")
    engine = run(given)

    assert measured(engine) == {(role, "face-2") for role in again}
    assert written(given) == anew(given)


def test_a_file_that_is_only_newer_gives_the_same_numbers(given: Path) -> None:
    """It is measured again, for its content may be another."""
    run(given)
    before = written(given)
    os.utime(given / "a" / "face-0.png", (1, 1))

    assert measured(run(given)) == {("=a", "face-0"), ("hq", "face-0")}
    assert written(given) == before


def test_features_that_are_gone_are_measured_again(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of what is measured points to their file; the values of the pictures stay."""
    small_sets(monkeypatch)
    run(given, metrics=("psnr", "fid"))
    before = written(given)
    features = sorted((given / "out" / ".evaluate" / "features").iterdir())
    features[0].unlink()
    engine = run(given, metrics=("psnr", "fid"))

    assert len(features) > 1
    assert 0 < len(engine.units) < COUNT
    assert not any(any(g["values"].values()) for _, unit in engine.units for g in unit["groups"])
    assert written(given) == before


def test_damaged_features_are_named_with_the_remedy(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted, as the message says, they are measured again."""
    small_sets(monkeypatch)
    run(given, metrics=("fid",))
    before = written(given)
    file = next((given / "out" / ".evaluate" / "features").iterdir())
    file.write_bytes(b"no array")
    with pytest.raises(UserError, match=f"{file.name}: damaged .*delete it and run the same"):
        run(given, metrics=("fid",))
    file.unlink()
    run(given, metrics=("fid",))

    assert written(given) == before


def cut(line: bytes) -> bytes:
    """Cut a line in its middle, as a power failure leaves it."""
    return line[: len(line) // 2]


def test_a_torn_last_line_is_measured_again(given: Path) -> None:
    """Nothing else is."""
    run(given)
    before = written(given)
    file = given / "out" / ".evaluate" / "measured.jsonl"
    *lines, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines) + cut(last))

    assert len({key for _, key in measured(run(given))}) == 1
    assert written(given) == before


def test_a_damaged_line_is_named_with_the_remedy(given: Path) -> None:
    """Without it, as the message says, its picture is measured anew."""
    run(given)
    before = written(given)
    file = given / "out" / ".evaluate" / "measured.jsonl"
    first, second, *lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([first, cut(second) + b"\n", *lines]))
    with pytest.raises(UserError, match=r"measured\.jsonl, line 2: damaged .*delete this line"):
        run(given)
    assert written(given) == before
    file.write_bytes(b"".join([first, *lines]))
    run(given)

    assert written(given) == before


KILLS = (("unit", 7), ("features", 2), ("rows", 1), ("table", 2), ("page", 3), ("summary", 4))
"""Where a job of three units is killed, one after the other, and at which call there."""


@pytest.mark.slow
@pytest.mark.forks
def test_killed_at_every_kind_of_write_it_ends_as_an_unbroken_run(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in a unit, and before each kind of write; nothing half-written is taken for whole."""
    small_sets(monkeypatch)
    monkeypatch.setattr("pipelines.evaluate.job.UNIT_ON_CPU", 2)
    monkeypatch.setattr("pipelines.evaluate.job.SHARES", 1)
    fields: dict[str, Any] = {"metrics": ("psnr", "brisque", "fid")}
    for where, call in KILLS:
        child = os.fork()
        if not child:
            kill_at(where, call, monkeypatch)
            run(given, **fields)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), where
        assert not (given / "out" / "summary.json").exists()
    assert run(given, **fields).units == []

    assert written(given) == anew(given, **fields)
    assert not list((given / "out").rglob("*.partial"))


def kill_at(where: str, call: int, patch: pytest.MonkeyPatch) -> None:
    """Have this process killed at a call of what decodes or writes."""
    from pipelines.evaluate import job as jobs
    from pipelines.evaluate.measured import MeasuredFile

    if where == "unit":
        patch.setattr(worker, "decoded", killing(worker.decoded, call))
    elif where == "features":
        patch.setattr(worker, "write_bytes", killing(worker.write_bytes, call))
    elif where == "rows":
        patch.setattr(MeasuredFile, "append", killing(MeasuredFile.append, call))
    else:  # config.json is the first
        patch.setattr(jobs.paths, "write_bytes", killing(jobs.paths.write_bytes, call))


def killing(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """Return a function whose call number ``at`` kills the process."""
    calls = iter(range(1, 1000))

    def deadly(*arguments: Any, **named: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return deadly


@pytest.mark.slow
@pytest.mark.forks
def test_a_picture_that_kills_the_process_is_named_and_the_rest_kept(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mended, it is measured alone; the processes and the signals are real."""
    sound = (given / "b" / "face-1.png").read_bytes()
    (given / "b" / "face-1.png").write_bytes(sound + POISON)
    decode = worker.decoded

    def deadly(data: bytes) -> Any:
        if data.endswith(POISON):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(data)

    monkeypatch.setattr(worker, "decoded", deadly)
    monkeypatch.setattr("pipelines.evaluate.job.SHARES", 0.1)  # all in one unit
    engine = Forked()
    with pytest.raises(UserError, match="3 pictures cannot be measured"):
        run(given, engine=engine)
    said = capsys.readouterr().err
    assert engine.deaths == 3  # one of the unit, and two of the key alone
    assert (
        "crashed\t--restored b face-1\tit, or another picture of its key, killed the process"
        in said
    )
    assert not (given / "out" / "summary.json").exists()

    (given / "b" / "face-1.png").write_bytes(sound)
    assert {key for _, key in measured(run(given))} == {"face-1"}
    assert written(given) == anew(given)


def test_a_smaller_job_leaves_what_a_larger_one_measured(given: Path) -> None:
    """A method that is left out for once is not measured again when it comes back."""
    run(given)
    run(given, methods="a")
    assert list(numbers(evaluate(given / "out", {"a": given / "a"}, reference=given / "hq"))) == [
        "a"
    ]

    assert run(given).units == []


def test_the_configuration_is_kept_with_absolute_paths(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers work elsewhere, and --config repeats the job from anywhere."""
    monkeypatch.chdir(given)
    Evaluation(job("out", {"a": "a"}, reference="hq")).run(InProcess())
    from infra.config import from_dict, read_object
    from pipelines.evaluate.config import EvaluateConfig

    kept = read_object(given / "out" / ".evaluate" / "config.json", "config")
    config = from_dict(EvaluateConfig, kept)
    before = written(given)
    monkeypatch.chdir("/")
    engine = InProcess()
    Evaluation(config).run(engine)

    assert config.sets.restored == (f"a={given / 'a'}",)
    assert (config.output, config.sets.reference) == (str(given / "out"), str(given / "hq"))
    assert engine.units == []
    assert written(given) == before

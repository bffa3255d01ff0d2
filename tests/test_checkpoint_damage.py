"""Checkpoints and logs of which something is damaged: the older ones are taken, and it is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UsageError, UserError
from infra.tracking.record import described, read
from tests.support.training_sets import assert_equal, digests, log, saved_weights
from trainers.loop.checkpoints import Checkpoints, whole
from trainers.loop.integrity import MANIFEST, damage, is_whole
from trainers.loop.stores import METRICS, LocalStore

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]
NEWEST, OLDER = "step-00000008", "step-00000004"
FILES = [
    "model/model.safetensors",
    "model/config.json",
    "ema-0.99/model.safetensors",
    "ema-0.99/config.json",
    "optimizer.safetensors",
    "engine/state/mp_rank_00_model_states.pt",
    "record.json",
    MANIFEST,
]


def flip(path: Path, position: int = -1) -> None:
    """Flip one bit, by default in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[position if position >= 0 else len(data) // 2] ^= 16
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "flipped": flip,
    "deleted": lambda path: path.unlink(),
}


def find(folder: Path) -> Checkpoints:
    """Return what looks for checkpoints in a run's folder."""
    return Checkpoints(LocalStore(folder / "checkpoints"), keep_last=1, keep_best=0, best="-loss")


@pytest.mark.parametrize("damaged", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_the_older_checkpoint_is_taken_for_one_with_any_damage(
    eight: Path, file: str, damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever happened to whichever file, it is named, and its checkpoint moved aside."""
    newest = eight / "checkpoints" / NEWEST
    assert {str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()} == {
        *FILES,
        METRICS,
    }
    DAMAGES[damaged](newest / file)
    is_gone = (file, damaged) == (MANIFEST, "deleted")  # as of a save that was killed
    found = find(eight).find("auto")
    warned = capsys.readouterr().err

    assert found is not None
    assert found.step == 4
    assert (warned == "") == is_gone
    assert newest.exists() == is_gone
    if not is_gone:
        blamed = "" if file == MANIFEST else file  # a digest changed there blames its file
        assert f"{newest} is damaged ({blamed}" in warned
        assert f"It is now damaged-{NEWEST}" in warned
        assert f"goes on from {OLDER}" in warned
        assert (newest.parent / f"damaged-{NEWEST}").is_dir()


@pytest.mark.parametrize("damaged", DAMAGES)
def test_damaged_numbers_of_a_validation_are_found_again(
    command: "list[str | Path]", train: "Train", eight: Path, damaged: str
) -> None:
    """The checkpoint is whole without them; the next start takes them from the run's log."""
    before = find(eight).find("auto")
    assert before is not None
    numbers = before.metrics
    DAMAGES[damaged](before.folder / METRICS)
    assert before.metrics == {}
    ended = train(command, eight)

    assert ended.code == 0, ended.said
    assert "complete already" in ended.said
    assert before.metrics == numbers != {}


@settings(max_examples=150)
@given(position=st.integers(0), bit=st.integers(0, 7))
def test_no_bit_of_a_manifest_changes_unnoticed(finished: Path, position: int, bit: int) -> None:
    """Every claim that it makes is checked; no flip of a bit ends in a traceback."""
    manifest = finished / "checkpoints" / NEWEST / MANIFEST
    before = manifest.read_bytes()
    data = bytearray(before)
    data[position % len(data)] ^= 1 << bit
    manifest.write_bytes(data)
    is_whole(manifest)
    try:
        assert damage(manifest.parent) or json.loads(data) == json.loads(before)
    finally:
        manifest.write_bytes(before)


def test_a_run_with_a_damaged_checkpoint_and_a_damaged_log_is_the_unbroken_one(
    command: "list[str | Path]", train: "Train", eight: Path
) -> None:
    """It goes on from the older checkpoint to the same weights; only broken lines are lost."""
    unbroken = log(eight), saved_weights(eight, 8)
    flip(eight / "checkpoints" / NEWEST / "engine/state/mp_rank_00_model_states.pt")
    flip(eight / "checkpoints" / OLDER / "../../config.json", 0)
    lines = (eight / "log.jsonl").read_bytes().splitlines()
    where = next(n for n, line in enumerate(lines) if line.startswith(b'{"step": 2'))
    lines[where:where] = [b"5", b'"x"', b"null", b"\xff\xfe", b'{"start": {"time": 1}}', b"{}"]
    (eight / "log.jsonl").write_bytes(b"\n".join([*lines, b""]))
    ended = train(command, eight)

    assert ended.code == 0, ended.said
    assert ended.said.count("WARNING") == 1
    kept = [line for line, _ in read(eight / "log.jsonl") if "step" in line]
    assert [line["train/loss"] for line in kept if "train/loss" in line] == [
        line["train/loss"] for line in unbroken[0] if "train/loss" in line
    ]
    assert_equal(saved_weights(eight, 8), unbroken[1])
    assert sorted(path.name for path in (eight / "checkpoints").iterdir()) == [
        f"damaged-{NEWEST}",
        OLDER,
        NEWEST,
    ]


def test_damage_to_all_checkpoints_ends_the_run_and_moves_nothing(
    command: "list[str | Path]", train: "Train", eight: Path
) -> None:
    """A run never begins again in silence; each remedy that is named works."""
    copy = shutil.copytree(eight, eight.parent / "copy")
    for name in (NEWEST, OLDER):
        flip(eight / "checkpoints" / name / "optimizer.safetensors")
    before = digests(eight)
    ended = train(command, eight)

    assert ended.code == 1
    for name in (NEWEST, OLDER):
        assert f"{name}: optimizer.safetensors has other bytes than were written" in ended.said
    assert digests(eight) == before
    assert train([*command, "--max-steps", "1"], eight.parent / "another").code == 0
    shutil.rmtree(eight / "checkpoints" / OLDER)
    shutil.copytree(copy / "checkpoints" / OLDER, eight / "checkpoints" / OLDER)
    assert train(command, eight).code == 0


def test_a_damaged_checkpoint_given_by_name_is_refused_and_a_whole_one_offered(
    eight: Path,
) -> None:
    """What a user named is never replaced in silence, and nothing of another run is moved."""
    newest, older = (eight / "checkpoints" / name for name in (NEWEST, OLDER))
    (newest / "record.json").write_bytes(b"")
    for path in (newest, eight):
        with pytest.raises(UsageError, match=r"record\.json is missing or cut") as caught:
            find(eight.parent / "other").find(str(path))
        assert str(caught.value).endswith(f"give {older}, which is whole")

    assert whole("--resume", older, eight / "copies").folder == older
    assert newest.is_dir()
    with pytest.raises(UserError, match="give a run or its step-"):
        whole("--resume", eight.parent, eight / "copies")


def test_a_damaged_record_does_not_stop_pruning(eight: Path) -> None:
    """What the run does not go on from is cleared away like any other old checkpoint."""
    (eight / "checkpoints" / OLDER / "record.json").write_bytes(b"")
    find(eight).prune()

    assert [path.name for path in (eight / "checkpoints").iterdir()] == [NEWEST]


def test_a_start_of_a_log_that_lacks_something_is_passed_over(tmp_path: Path) -> None:
    """The last whole one counts."""
    start = dict.fromkeys(("uri", "experiment", "params", "run_id", "name", "tags"), "x")
    lines = [{"start": {**start, "token": "t", "time": 3}}, {"start": {"time": 4, "token": "u"}}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert described(tmp_path / "log.jsonl")["token"] == "t"

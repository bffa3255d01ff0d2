"""The record keeps every line through kills, full disks and damage."""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.tracking.record import Record, described, read

URI = "sqlite:////a.db"


def opened(folder: Path, rewind_to: int | None = None) -> Record:
    """Open the record of a folder."""
    folder.mkdir(exist_ok=True)
    return Record(folder / "log.jsonl", folder / "state", rewind_to)


def lines(record: Record, offset: int = 0) -> list[dict[str, Any]]:
    """Read a record's lines."""
    return [line for line, _ in read(record.log, offset)]


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    """What was appended is read again, by this process and the next, from any offset on."""
    record = opened(tmp_path / "a")
    for n in range(5):
        record.append({"n": n})
    offsets = [offset for _, offset in read(record.log)]
    record.close()

    assert lines(opened(tmp_path / "a"), offsets[2]) == [{"n": 3}, {"n": 4}]


@settings(max_examples=20)
@given(torn=st.binary(max_size=200_000).map(lambda data: data.replace(b"\n", b"")))
def test_a_torn_tail_is_cut(tmp_path_factory: pytest.TempPathFactory, torn: bytes) -> None:
    """Half a line, however long, that a dying writer left does not damage what comes after it."""
    folder = tmp_path_factory.mktemp("torn")
    record = opened(folder)
    record.append({"n": 0})
    record.close()
    with record.log.open("ab") as file:
        file.write(torn)

    again = opened(folder)
    again.append({"n": 1})

    assert lines(again) == [{"n": 0}, {"n": 1}]


def test_a_damaged_line_hides_no_other(tmp_path: Path) -> None:
    """A line that is no record is empty; its neighbours are whole."""
    (tmp_path / "log.jsonl").write_bytes(b'{"n":0}\n{"n":\n{"n":2}\n')

    assert lines(opened(tmp_path)) == [{"n": 0}, {}, {"n": 2}]


@pytest.mark.parametrize("written_first", [0, 4])
def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_first: int
) -> None:
    """Lines that the disk refuses, even halfway, are written once there is space again."""
    record = opened(tmp_path / "a")
    write, space = os.write, [written_first]

    def full(fd: int, data: bytes) -> int:
        if not space[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, space[0] = space[0], 0
        return write(fd, data[:taken])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for n in range(2):
            with pytest.raises(OSError, match="No space"):
                record.append({"n": n})
        assert record.unwritten == 2
    record.append({"n": 2})

    assert lines(record) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert record.unwritten == 0


@pytest.mark.parametrize(("rewind_to", "kept"), [(None, 4), (2, 3), (1, 2), (-1, 0)])
def test_rewinding_cuts_later_steps_only(tmp_path: Path, rewind_to: int | None, kept: int) -> None:
    """Lines without a step stay; what was sent is forgotten if, and only if, something was cut."""
    facts = [{"start": {}}, {"second": 9, "time": 9, "cpu": 1.0}, {"time": 9, "images": 3.0}]
    record = opened(tmp_path)
    for line in (facts[0], *({"step": n, "time": n, "loss": 0.5} for n in range(4)), *facts[1:]):
        record.append(line)
    record.save_offset(URI, 10)
    record.close()
    again = opened(tmp_path, rewind_to)

    assert [line for line in lines(again) if "step" not in line] == facts
    assert [line["step"] for line in lines(again) if "step" in line] == list(range(kept))
    assert again.offset(URI) == (10 if kept == 4 else 0)


def test_an_offset_is_of_one_store(tmp_path: Path) -> None:
    """A store that was sent nothing has nothing, whatever another one has."""
    record = opened(tmp_path)
    record.save_offset(URI, 10)

    assert (record.offset(URI), record.offset("sqlite:////b.db")) == (10, 0)


def test_files_wait_in_the_order_of_keeping(tmp_path: Path) -> None:
    """Two files of one name both wait, the older first, so that the newer one is what stays."""
    record = opened(tmp_path)
    for data in (b"first", b"second"):
        size, sha256 = record.keep(io.BytesIO(data), "images/x.png")
    found = record.files()

    assert size == 6
    assert len(sha256) == 64
    assert [name for _, name in found] == ["images/x.png"] * 2
    assert [(folder / name).read_bytes() for folder, name in found] == [b"first", b"second"]


def test_a_log_describes_its_run(tmp_path: Path) -> None:
    """By the last start, the first one's time, and how it ended; metrics are never taken for it."""
    log = tmp_path / "log.jsonl"
    assert described(log) == {}
    rest = {"experiment": "e", "params": "p", "name": None, "tags": {}}
    starts: list[dict[str, Any]] = [
        {"token": "a", "uri": URI, "run_id": "b", "time": 1, **rest},
        {"token": "a", "uri": "", "run_id": None, "time": 5, **rest},
    ]
    metrics = {"step": 0, "time": 2, "start": 1.0, "end": 2.0}
    ends = [{"end": {"status": "KILLED", "time": 3}}]
    written = [{"start": starts[0]}, metrics, *ends, {"start": starts[1]}]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in written))

    begun = {"time": 5, "created": 1, "status": "RUNNING", **rest}
    assert described(log) == {"token": "a", "uri": URI, "run_id": "b", **begun}

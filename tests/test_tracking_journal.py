"""The journal keeps every record through kills, full disks and other processes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UsageError, UserError
from infra.tracking.journal import Journal, others, take

URI = "sqlite:////a.db"


def hold(folder: Path) -> Journal:
    """Open a journal that nobody else holds."""
    journal = Journal.hold(folder)
    assert journal is not None
    return journal


def records(journal: Journal, offset: int = 0) -> list[dict[str, object]]:
    """Read a journal's records."""
    return [record for record, _ in journal.read(offset)]


def written(folder: Path, name: str, **facts: object) -> str:
    """Leave a journal with these facts in ``run.json``, as a process that has ended."""
    journal = hold(folder / name)
    journal.save("run.json", {"uri": URI, "created": 0.0, "status": "RUNNING", **facts})
    journal.close()
    return name


def test_records_come_back_in_order(tmp_path: Path) -> None:
    """What was appended is read again, by this process and the next, from any offset on."""
    journal = hold(tmp_path / "a")
    for n in range(5):
        journal.append({"n": n})
    offsets = [offset for _, offset in journal.read(0)]
    journal.close()

    assert records(hold(tmp_path / "a"), offsets[2]) == [{"n": 3}, {"n": 4}]


@settings(max_examples=20)
@given(torn=st.binary(max_size=200_000).map(lambda data: data.replace(b"\n", b"")))
def test_a_torn_tail_is_cut(tmp_path_factory: pytest.TempPathFactory, torn: bytes) -> None:
    """Half a line, however long, that a dying writer left does not damage what comes after it."""
    folder = tmp_path_factory.mktemp("torn")
    journal = hold(folder)
    journal.append({"n": 0})
    journal.close()
    with (folder / "records.jsonl").open("ab") as file:
        file.write(torn)

    again = hold(folder)
    again.append({"n": 1})

    assert records(again) == [{"n": 0}, {"n": 1}]


def test_a_damaged_line_hides_no_other(tmp_path: Path) -> None:
    """A line that is no record is empty; its neighbours are whole."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "records.jsonl").write_bytes(b'{"n":0}\n{"n":\n{"n":2}\n')

    assert records(hold(tmp_path / "a")) == [{"n": 0}, {}, {"n": 2}]


@pytest.mark.parametrize("written_first", [0, 4])
def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_first: int
) -> None:
    """Records that the disk refuses, even halfway, are written once there is space again."""
    journal = hold(tmp_path / "a")
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
                journal.append({"n": n})
        assert journal.unwritten == 2
    journal.append({"n": 2})

    assert records(journal) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert journal.unwritten == 0


def test_the_same_name_replaces_a_file(tmp_path: Path) -> None:
    """A file that was replaced while its first version was on its way is still to be sent."""
    journal = hold(tmp_path / "a")
    journal.put("images/x.png", b"first")
    sending = journal.path("images/x.png").stat()
    (tmp_path / "report.html").write_bytes(b"second")
    journal.copy(tmp_path / "report.html", "images/x.png")

    journal.discard("images/x.png", sending)

    assert journal.files() == ["images/x.png"]
    assert journal.path("images/x.png").read_bytes() == b"second"
    journal.discard("images/x.png", journal.path("images/x.png").stat())
    assert journal.files() == []


def test_a_journal_has_one_holder(tmp_path: Path) -> None:
    """Neither this process nor another can hold it a second time; afterwards both can."""
    probe = (
        "import sys; from pathlib import Path; from infra.tracking.journal import Journal;"
        "sys.exit(Journal.hold(Path(sys.argv[1])) is not None)"
    )
    command = [sys.executable, "-c", probe, str(tmp_path / "a")]

    journal = hold(tmp_path / "a")
    assert Journal.hold(tmp_path / "a") is None
    assert subprocess.run(command, check=False).returncode == 0
    journal.close()
    assert subprocess.run(command, check=False).returncode == 1
    hold(tmp_path / "a")


def test_a_forked_worker_does_not_hold_it(tmp_path: Path) -> None:
    """A data-loading worker that outlives its killed trainer leaves the journal to the next."""
    journal = hold(tmp_path / "a")
    read_end, write_end = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.read(read_end, 1)
        os._exit(0)
    try:
        journal.close()
        assert Journal.hold(tmp_path / "a") is not None
    finally:
        os.write(write_end, b"x")
        os.waitpid(worker, 0)


def test_an_unfinished_journal_is_taken_up(tmp_path: Path) -> None:
    """The latest with the same facts that did not finish is continued; else there is a new one."""
    written(tmp_path, "other", uri="sqlite:////b.db", created=4.0)
    written(tmp_path, "finished", status="FINISHED", created=3.0)
    written(tmp_path, "latest", created=2.0)
    written(tmp_path, "older", created=1.0)

    assert take(tmp_path, {"uri": URI}, None).token == "latest"
    assert take(tmp_path, {"uri": URI}, None).token == "older"  # the latest is held now
    assert take(tmp_path, {"uri": URI}, None).token not in {"other", "finished"}


def test_a_journal_is_taken_by_name(tmp_path: Path) -> None:
    """A name decides whatever the facts are, unless someone holds it or it is no name."""
    written(tmp_path, "mine", status="FINISHED")

    assert take(tmp_path, {"uri": "another"}, "mine").token == "mine"
    with pytest.raises(UserError, match="another process"):
        take(tmp_path, {}, "mine")
    with pytest.raises(UsageError, match="letters"):
        take(tmp_path, {}, "../mine")


def test_leftovers_are_those_of_the_store(tmp_path: Path) -> None:
    """What waits for another store, or is in use, is left alone."""
    written(tmp_path, "a")
    written(tmp_path, "b", uri="sqlite:////b.db")
    held = take(tmp_path, {}, written(tmp_path, "c"))

    assert [journal.token for journal in others(tmp_path, URI)] == ["a"]
    assert held.token == "c"

"""`python -m pipelines.score`: every image gets a row, as it is scored, once."""

import csv
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import pytest

from datasets import fetching
from datasets.decoding import Pixels
from datasets.unusable import UnreadableImage
from infra.errors import BudgetExceeded, UsageError, UserError
from pipelines.jobs.score_file import read_scores
from pipelines.jobs.scorers import Quality
from pipelines.score import __main__ as score
from pipelines.score import judge
from tests.conftest import ROOT, Pictures, picture
from tests.support.curation_jobs import run

DIES = """
import os, signal, sys
from pipelines.score import __main__ as score
from pipelines.score.table import ScoreTable

append, done = ScoreTable.append, []

def append_and_die(table, rows):
    append(table, rows)
    done.append(rows)
    if len(done) == 3:
        table._file.write(b"photo-17,1234,17")  # a line that was not finished
        table._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

ScoreTable.append = append_and_die
score.main(sys.argv[1:])
"""
"""The program, killed while it writes its fourth batch."""


def rows(table: Path) -> list[dict[str, str]]:
    """Read a table of scores."""
    return rows_of(table.read_text())


def rows_of(text: str) -> list[dict[str, str]]:
    """Read the text of a table of scores."""
    return list(csv.DictReader(text.splitlines()))


def arguments(images: object, output: object, *more: str) -> list[str]:
    """Score a folder by BRISQUE."""
    return ["--preset", "brisque", "--images", str(images), "--output", str(output), *more]


def test_a_killed_run_continues_after_its_last_line(pictures: Pictures, tmp_path: Path) -> None:
    """SIGKILL in the middle of a line: the table ends as that of an unbroken run, byte for byte."""
    source, broken, whole = pictures(30, 60, 50), tmp_path / "broken.csv", tmp_path / "whole.csv"
    (source / "a-text.png").write_text("no image")
    score.main(arguments(source, whole))
    command = [sys.executable, "-c", DIES, *arguments(source, broken)]
    died = subprocess.run(command, cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    left = broken.read_bytes()
    assert left.startswith(whole.read_bytes()[: left.rfind(b"\n") + 1])
    assert len(left.splitlines()) == 1 + 3 * 8 + 1

    assert score.main(arguments(source, broken)) == 0
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("left", [0, 5, 11])
def test_a_table_that_broke_off_in_its_header_is_begun_again(
    pictures: Pictures, tmp_path: Path, left: int
) -> None:
    """Nothing was written after it."""
    source, table = pictures(1), tmp_path / "scores.csv"
    score.main(arguments(source, table))
    whole = table.read_bytes()
    table.write_bytes(whole[:left])
    score.main(arguments(source, table))

    assert table.read_bytes() == whole


def test_what_is_scored_is_not_scored_again(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only new images and changed ones, of which the last row counts."""
    source, table = pictures(3), tmp_path / "scores.json"
    picture(21, 90, 80).save(source / "changed.png")
    score.main(arguments(source, table))
    first = rows(table.with_suffix(".csv"))
    capsys.readouterr()

    picture(22, 90, 80).save(source / "changed.png")
    picture(23, 90, 80).save(source / "new.png")
    score.main(arguments(source, table))
    printed = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    second = rows(table.with_suffix(".csv"))
    assert second[: len(first)] == first
    assert [row["key"] for row in second[len(first) :]] == printed == ["changed", "new"]
    assert read_scores(str(table))[0].scores["changed"] == float(second[-2]["score"])


class Fragile:
    """A scorer that fails on images of some widths, and answers others by their width."""

    def __init__(self, widths: set[int]) -> None:
        self.widths = widths

    def score(self, images: Iterable[Sequence[Pixels]]) -> Iterator[Quality]:
        """Fail as a library does, in the middle of a batch."""
        for patch in chain.from_iterable(images):
            if patch.shape[1] in self.widths:
                raise ZeroDivisionError(f"a patch of width\n{patch.shape[1]}")
            yield Quality(float(patch.shape[1]))


def test_an_image_on_which_anything_fails_is_a_row(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading, decoding and scoring; the others of its batch have their scores."""
    source, table = pictures(5), tmp_path / "scores.csv"
    (source / "cut.png").write_bytes((source / "photo-00.png").read_bytes()[:300])
    read = fetching.read

    def reading(ref: judge.ImageRef) -> bytes:
        if ref.key == "photo-01":
            raise NotImplementedError("deflate64")
        if ref.key == "photo-03":
            raise UnreadableImage("unreadable", "Permission denied")
        return read(ref)

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "read", reading)
        patch.setattr(score, "load", lambda *_: Fragile({176}))
        score.main(arguments(source, table))
    found = {row["key"]: row for row in rows(table)}

    assert {key: row["drop_reason"] for key, row in found.items()} == {
        "cut": "truncated",
        "more/photo-02": "scorer_failed",
        "photo-00": "",
        "photo-01": "undecodable",
        "photo-03": "unreadable",
        "photo-04": "",
    }
    assert found["photo-01"]["detail"] == "NotImplementedError: deflate64"
    assert found["more/photo-02"]["detail"] == "ZeroDivisionError: a patch of width 176"
    assert float(found["photo-04"]["score"]) == 192.0

    score.main(arguments(source, table))
    again = {row["key"]: row["drop_reason"] for row in rows(table)[len(found) :]}
    assert again == {"more/photo-02": "", "photo-03": ""}


def test_a_scorer_that_fails_on_every_image_ends_the_work(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the images' fault; mended, the same command tries them again."""
    source, table = pictures(20, 60, 50), tmp_path / "scores.csv"
    with monkeypatch.context() as patch:
        patch.setattr(score, "load", lambda *_: Fragile(set(range(1000))))
        with pytest.raises(UserError, match="failed on 8 images one after another"):
            score.main(arguments(source, table))
    assert [row["drop_reason"] for row in rows(table)] == ["scorer_failed"] * 8

    score.main(arguments(source, table))
    assert sum(bool(row["score"]) for row in rows(table)) == 20


def test_the_file_of_scores_says_whose_they_are(pictures: Pictures, tmp_path: Path) -> None:
    """Whole images by BRISQUE: curation refuses to take them for crops."""
    source, target = pictures(2), tmp_path / "scores.json"
    score.main(arguments(source, target))
    file, _ = read_scores(str(target))

    assert file.scores.keys() == {"photo-00", "photo-01"}
    assert (file.scorer["name"], file.higher_is_better) == ("brisque", False)
    with pytest.raises(UsageError, match=r"other candidates.*'whole'"):
        run(source, tmp_path / "set", scorer=str(target))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"name,age\nAda,36\n", "not a table that pipelines.score wrote"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "not a table that pipelines.score wrote"),
        (b"key", None),
    ],
)
def test_another_file_is_refused(
    pictures: Pictures, tmp_path: Path, content: bytes, named: str | None
) -> None:
    """And stays as it is."""
    table = tmp_path / "scores.csv"
    table.write_bytes(content)
    if named is None:
        assert score.main(arguments(pictures(1), table)) == 0
        return
    with pytest.raises(UsageError, match=named):
        score.main(arguments(pictures(1), table))
    assert table.read_bytes() == content


def test_the_table_of_another_scorer_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    """By what differs, although it has the same columns."""
    source, table = pictures(1), tmp_path / "scores.csv"
    score.main(arguments(source, table))
    digest = rows(table)[0]["digest"]
    table.write_text(table.read_text().replace(digest, "0" * 64))
    with pytest.raises(UsageError, match=f"another scorer.*digest: '0{{12}}' -> '{digest[:12]}'"):
        score.main(arguments(source, table))


def test_one_process_writes_a_table(pictures: Pictures, tmp_path: Path) -> None:
    """The second is told to wait."""
    table = tmp_path / "scores.csv"
    with (
        score.ScoreTable(table, {}),
        pytest.raises(UserError, match="being written by another process"),
    ):
        score.main(arguments(pictures(1), table))


def test_too_many_broken_images_are_an_exit_code(pictures: Pictures, tmp_path: Path) -> None:
    """Also if they were found by an earlier run; a flat image is not broken."""
    source, table = pictures(2), tmp_path / "scores.csv"
    (source / "cut.png").write_bytes((source / "photo-00.png").read_bytes()[:300])
    assert score.main(arguments(source, table)) == 0
    with pytest.raises(BudgetExceeded, match="1 of 3 images are broken"):
        score.main(arguments(source, table, "--max-bad", "0.2"))


def test_what_is_not_there_is_named_with_its_option() -> None:
    """It is --images here."""
    with pytest.raises(UsageError, match=r"--images nowhere: no such file or folder"):
        score.main(["--preset", "brisque", "--images", "nowhere"])

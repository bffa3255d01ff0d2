"""What a curation says of odd inputs: what was ignored, what may pass, what names and colours."""

import io
import json
import lzma
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets import shards
from datasets.archives.archive import Archive
from datasets.verify import problems
from infra.errors import BudgetExceeded
from pipelines.curate.job import Curation
from tests.conftest import Pictures, picture
from tests.support.curation_jobs import InProcess, config, published, run
from tests.support.icc_profiles import adobe_rgb
from tests.test_sources import tar


def scores(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a set's scores.parquet."""
    rows: list[dict[str, Any]] = pq.read_table(folder / "scores.parquet").to_pylist()
    return rows


class Unplugged(InProcess):
    """Takes a file away while images are scored, as a network disk does."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def run(self, name: str, *rest: Any) -> Iterator[dict[str, Any]]:
        """Hide the file from the workers of a stage."""
        hidden = self.file.rename(self.file.with_suffix(".hidden"))
        yield from super().run(name, *rest)
        hidden.rename(self.file)


def test_what_failed_for_a_reason_that_may_pass_is_tried_again(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The set says so; while nothing changes no shard is made again; then it is as a fresh one."""
    source = pictures(5)
    lost = source / "photo-01.png"
    with pytest.raises(BudgetExceeded, match="1 of 5 images are broken"):
        Curation(config(source, tmp_path / "set")).run(Unplugged(lost))
    before = published(tmp_path / "set")

    assert "1 images could not be read for a reason that may pass" in capsys.readouterr().out
    assert {r["drop_reason"] for r in scores(tmp_path / "set") if r["index"] == 0} == {"vanished"}
    manifest = json.loads(before["manifest.json"])
    assert manifest["input"]["transient"] == manifest["input"]["broken"] == 1

    again = Unplugged(lost)
    with pytest.raises(BudgetExceeded, match="1 of 5 images are broken"):
        Curation(config(source, tmp_path / "set")).run(again)
    assert (again.count("score"), again.count("pack")) == (1, 0)
    assert published(tmp_path / "set") == before

    healed = run(source, tmp_path / "set")
    run(source, tmp_path / "fresh")
    assert healed.count("score") == 1
    assert published(tmp_path / "set") == published(tmp_path / "fresh")
    assert run(source, tmp_path / "set").units == []


def test_what_is_ignored_is_counted_and_named_everywhere(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Summary, report, manifest, table; a damaged archive counts as broken, with its place."""
    source = pictures(4)
    (source / "notes.txt").write_text("hello")
    archive = tar(pictures(6, name="other"), tmp_path / "other.tar", "w")
    damaged = bytearray(archive.read_bytes())
    with tarfile.open(archive) as opened:
        place, header = opened.getmembers()[3].offset, opened.getmembers()[3].offset_data - 512
        size = opened.getmembers()[4].offset - place
    damaged[header] ^= 0xFF
    archive.write_bytes(damaged)
    inputs = (str(source), f"other={archive}")
    with pytest.raises(BudgetExceeded, match=r"0 of 9 images.*1 places in the inputs") as caught:
        run(source, tmp_path / "set", input=inputs)

    assert caught.value.exit_code == 3
    assert "ignored: 1 damage, 1 other_file\n" in capsys.readouterr().out
    manifest = shards.read_manifest(tmp_path / "set")
    assert manifest is not None
    assert manifest["input"]["ignored"] == {"damage": 1, "other_file": 1}
    page = (tmp_path / "set" / "report.html").read_text()
    assert "Ignored, by kind" in page
    assert "other_file" in page
    rows = pq.read_table(tmp_path / "set" / "ignored.parquet").to_pylist()
    assert [(row["origin"], row["file"]) for row in rows] == [
        ("other", "other.tar"),
        ("raw", "notes.txt"),
    ]
    said = f"{size:,} bytes at offset {place:,} belong to no member that can be read"
    assert rows[0]["detail"] == said
    assert list(problems(tmp_path / "set")) == []


def test_names_of_any_bytes_reach_the_shards_as_valid_keys(
    pictures: Pictures, tmp_path: Path
) -> None:
    """A name that is no UTF-8 ended the job after all the scoring."""
    source = pictures(2)
    odd = os.fsdecode(os.fsencode(source) + b"/caf\xe9\\..1.png")
    picture(8, 160, 128).save(odd)
    run(source, tmp_path / "set")
    rows = {row["source"]: row for row in scores(tmp_path / "set")}

    assert rows["caf_xe9___1"]["file"] == "caf\\xe9\\..1.png"
    assert rows["photo-00"]["file"] == "photo-00.png"
    manifest = shards.read_manifest(tmp_path / "set")
    assert manifest is not None
    assert manifest["input"]["renamed"] == 1
    assert list(problems(tmp_path / "set")) == []


def test_the_profile_is_recorded_in_table_and_sample(pictures: Pictures, tmp_path: Path) -> None:
    """`icc` is the profile's name; null where there is none."""
    source = pictures(2)
    with Image.open(source / "photo-00.png") as image:
        image.save(source / "wide.png", icc_profile=adobe_rgb())
    run(source, tmp_path / "set", val_fraction=0.0)
    rows = {row["source"]: row["icc"] for row in scores(tmp_path / "set")}

    assert rows == {"photo-00": None, "photo-01": None, "wide": "Adobe RGB (1998)"}
    found = set()
    for shard in (tmp_path / "set").glob("*.tar"):
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    label = json.loads(archive.extractfile(member).read())  # type: ignore[union-attr]
                    found.add((label["source"], label["icc"]))
    assert ("wide", "Adobe RGB (1998)") in found
    assert ("photo-00", None) in found


def test_a_complete_set_of_compressed_archives_is_left_alone_at_once(
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No copy stays, none is made again, nothing is listed again; another cut makes one."""
    source = pictures(4)
    packed = io.BytesIO(tar(source, tmp_path / "all.tar", "w").read_bytes())
    archive = tmp_path / "all.tar.xz"
    archive.write_bytes(lzma.compress(packed.getvalue(), preset=0))
    run(archive, tmp_path / "set")
    assert "archives to list: 1 (0 MB)" in capsys.readouterr().err
    kept = tmp_path / "set" / ".curate" / "sources"

    assert [path.suffix for path in kept.iterdir()] == [".parquet"]
    run(archive, tmp_path / "set", threshold=55.0)
    run(source, tmp_path / "fresh", threshold=55.0)
    names = [name for name in published(tmp_path / "set") if name.endswith(".tar")]
    assert names
    assert [path.suffix for path in kept.iterdir()] == [".parquet"]

    monkeypatch.setattr(Archive, "_list", lambda self: pytest.fail("listed again"))
    monkeypatch.setattr(Archive, "prepare", lambda self: pytest.fail("copied again"))
    assert run(archive, tmp_path / "set", threshold=55.0).units == []
    assert "archives to list" not in capsys.readouterr().err

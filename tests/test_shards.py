"""Shards: one sample's bytes, one tar's bytes, and how a set appears."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset as wds

from datasets.shards import (
    END_OF_ARCHIVE,
    fits_ustar,
    index_table,
    load_record,
    publish,
    read_manifest,
    save_record,
    shard_name,
    write_shard,
)
from infra.config import pretty_json
from infra.errors import UserError

SAMPLES = [
    ("a/photo_s001", {"png": b"\x89PNG" + bytes(700), "json": b'{"key":"a/photo_s001"}'}),
    ("b_s010", {"png": b"x" * 512, "json": b"{}"}),
    ("c", {"png": b"", "json": b"{}"}),
]


def test_plain_webdataset_reads_a_shard(tmp_path: Path) -> None:
    """The public library gives back exactly what was written, in order."""
    write_shard(tmp_path / "train-000000.tar", SAMPLES)
    reader = wds.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False)

    found = [(s["__key__"], {"png": s["png"], "json": s["json"]}) for s in reader]

    assert found == SAMPLES


def test_a_shard_is_plain_ustar_without_times_or_ids(tmp_path: Path) -> None:
    """Readers that know neither PAX nor GNU headers can read it; nothing in it depends on today."""
    path = tmp_path / "train-000000.tar"
    write_shard(path, SAMPLES)
    with tarfile.open(path) as tar:
        infos = tar.getmembers()

    assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in infos} == {
        (0, 0, 0, "", "", 0o644)
    }
    assert all(not info.pax_headers for info in infos)
    assert path.read_bytes()[257:263] == b"ustar\x00"


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    """Two writings differ in nothing, and the recorded hash and length are the file's."""
    first = write_shard(tmp_path / "a" / "train-000000.tar", SAMPLES)
    second = write_shard(tmp_path / "b" / "train-000000.tar", iter(SAMPLES))

    data = (tmp_path / "a" / "train-000000.tar").read_bytes()
    assert first == second
    assert len(data) == first.bytes
    assert data == (tmp_path / "b" / "train-000000.tar").read_bytes()


def test_the_index_gives_the_bytes_of_every_member(tmp_path: Path) -> None:
    """One ranged read fetches any file of any sample."""
    path = tmp_path / "train-000000.tar"
    table = index_table([write_shard(path, SAMPLES)])
    data = path.read_bytes()
    contents = dict(SAMPLES)

    for row in table.to_pylist():
        expected = contents[row["key"]][row["extension"]]

        assert expected == data[row["offset"] : row["offset"] + row["size"]]
    assert table.num_rows == 6


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    """A shard that could not be finished has no file, not even a temporary one."""

    def samples() -> object:
        yield SAMPLES[0]
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        write_shard(tmp_path / "train-000000.tar", samples())  # type: ignore[arg-type]

    assert not list(tmp_path.iterdir())


def test_a_record_holds_only_while_its_shard_is_whole(tmp_path: Path) -> None:
    """A finished mark without the tar, or with a shorter one, is no mark."""
    path = tmp_path / "train-000000.tar"
    shard = write_shard(path, SAMPLES)
    record = tmp_path / "record.json"
    assert load_record(record) is None
    save_record(record, shard)

    assert shard == load_record(record)

    path.write_bytes(path.read_bytes()[:-1])
    assert load_record(record) is None
    path.unlink()
    assert load_record(record) is None


def test_long_names_are_told_before_anything_is_written() -> None:
    """A tar holds 100 bytes after a slash and 155 before it; letters beyond ASCII take several."""
    assert fits_ustar("f" * 155 + "/" + "x" * 100)
    assert fits_ustar("é" * 50)
    for long in ("x" * 101, "é" * 51, "f" * 156 + "/" + "x", "x/" + "y" * 101):
        assert not fits_ustar(long)
    with pytest.raises(UserError, match=r"xx.png: .* at most 100 bytes after a '/', and 155"):
        write_shard(Path("/nonexistent-never-made"), [("x" * 120, {"png": b""})])


@pytest.fixture
def staged(tmp_path: Path) -> Callable[[str, int], Path]:
    """Stage a set of ``count`` shards, each holding ``text``."""

    def stage(text: str, count: int) -> Path:
        staging = tmp_path / "set" / ".state" / text
        shards = [
            write_shard(staging / shard_name("train", n), [(f"{text}{n}", {"json": text.encode()})])
            for n in range(count)
        ]
        (staging / "index.parquet").write_bytes(text.encode())
        files = {"index.parquet": {"bytes": len(text)}}
        manifest = {"shards": [shard.entry() for shard in shards], "files": files, "text": text}
        (staging / "manifest.json").write_bytes(pretty_json(manifest))
        return staging

    return stage


def test_publishing_replaces_a_set_by_a_smaller_one(
    tmp_path: Path, staged: Callable[[str, int], Path]
) -> None:
    """Nothing of the old set is left, and the staging folder is gone."""
    folder = tmp_path / "set"
    publish(staged("old", 4), folder)
    publish(staged("new", 2), folder)

    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        ".state",
        "index.parquet",
        "manifest.json",
        "train-000000.tar",
        "train-000001.tar",
    ]
    assert (read_manifest(folder) or {})["text"] == "new"
    assert not list((folder / ".state").iterdir())


def test_publishing_stopped_at_any_rename_shows_no_set_and_can_be_finished(
    tmp_path: Path, staged: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail the n-th rename, for every n: a manifest never stands beside another set's shards."""
    folder = tmp_path / "set"
    from infra import storage as module

    real = module.move
    for n in range(4):
        publish(staged(f"old{n}", 3), folder)
        staging = staged(f"new{n}", 3)
        left = [n]

        def failing(source: Path, target: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("killed here")
            real(source, target)

        monkeypatch.setattr(module, "move", failing)
        with pytest.raises(OSError, match="killed here"):
            publish(staging, folder)
        monkeypatch.setattr(module, "move", real)

        assert read_manifest(folder) is None

        publish(staging, folder)
        assert (read_manifest(folder) or {})["text"] == f"new{n}"
        for number in range(3):
            data = (folder / shard_name("train", number)).read_bytes()
            assert f"new{n}".encode() in data


def test_a_file_that_is_no_manifest_is_the_users_to_move(tmp_path: Path) -> None:
    """Somebody else's manifest.json is not overwritten and not a traceback."""
    (tmp_path / "manifest.json").write_text("[1, 2]")

    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(tmp_path)


def test_an_empty_shard_is_a_valid_archive(tmp_path: Path) -> None:
    """Two zero blocks end a tar."""
    write_shard(tmp_path / "x.tar", [])

    assert (tmp_path / "x.tar").read_bytes() == END_OF_ARCHIVE
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == []

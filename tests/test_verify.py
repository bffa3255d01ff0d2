"""Verification: every kind of damage to a set is found and named."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datasets.shards import MANIFEST, file_entry, parquet_bytes, read_manifest, write_shard
from datasets.verify import problems
from infra.config import pretty_json
from infra.storage import sha256
from pipelines.curate import __main__ as curate
from tests.conftest import picture
from tests.support.curation_jobs import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curate a small set once."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "raw").mkdir()
    for number in range(8):
        picture(number, 160, 128).save(folder / "raw" / f"photo-{number}.png")
    run(folder / "raw", folder / "set", threshold=200.0)
    return folder / "set"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the set, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "set"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest in place."""
    manifest = read_manifest(folder)
    assert manifest is not None
    change(manifest)
    (folder / MANIFEST).write_bytes(pretty_json(manifest))


def contents(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Read a shard's samples."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            key, _, extension = info.name.partition(".")
            file = tar.extractfile(info)
            assert file is not None
            samples.setdefault(key, {})[extension] = file.read()
    return list(samples.items())


def rewrite(folder: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    """Write the first shard anew and make the manifest agree: only the content is wrong."""
    name = "train-000000.tar"
    shard = write_shard(folder / name, samples)

    def agree(manifest: dict[str, Any]) -> None:
        manifest["shards"] = [
            shard.entry() if entry["name"] == name else entry for entry in manifest["shards"]
        ]

    edit_manifest(folder, agree)


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Write a file anew and make the manifest agree: only the content is wrong."""
    (folder / name).write_bytes(content)

    def agree(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = file_entry(folder / name)

    edit_manifest(folder, agree)


def flip_byte(folder: Path) -> None:
    """Flip one bit in the middle of a shard."""
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_shard(folder: Path) -> None:
    """Lose the last bytes of a shard."""
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-2000])


def wrong_label(folder: Path) -> None:
    """Let a JSON claim another width."""
    samples = contents(folder / "train-000000.tar")
    label = json.loads(samples[0][1]["json"]) | {"width": 32}
    samples[0][1]["json"] = json.dumps(label).encode()
    rewrite(folder, samples)


def swap_pixels(folder: Path) -> None:
    """Give one sample another's picture."""
    samples = contents(folder / "train-000000.tar")
    samples[0][1]["png"] = samples[1][1]["png"]
    rewrite(folder, samples)


def lose_json(folder: Path) -> None:
    """Drop a sample's JSON."""
    samples = contents(folder / "train-000000.tar")
    del samples[1][1]["json"]
    rewrite(folder, samples)


def repeat_key(folder: Path) -> None:
    """Put a sample of another shard into the first as well."""
    extra = contents(folder / "train-000001.tar")[0]
    rewrite(folder, [*contents(folder / "train-000000.tar"), extra])


def leak(folder: Path) -> None:
    """Move a patch of a validation photograph into training."""
    extra = contents(folder / "val-000000.tar")[0]
    label = json.loads(extra[1]["json"]) | {"key": "leaked"}
    members = {"png": extra[1]["png"], "json": json.dumps(label).encode()}
    rewrite(folder, [*contents(folder / "train-000000.tar"), ("leaked", members)])


def shift_index(folder: Path) -> None:
    """Let the index point one byte too far."""
    table = pq.read_table(folder / "index.parquet")
    offsets = [offset + 1 for offset in table["offset"].to_pylist()]
    place = table.schema.get_field_index("offset")
    table = table.set_column(place, table.schema.field(place), [offsets])
    replace_file(folder, "index.parquet", parquet_bytes(table))


def forget_kept_row(folder: Path) -> None:
    """Drop the first row of scores.parquet."""
    table = pq.read_table(folder / "scores.parquet")
    replace_file(folder, "scores.parquet", parquet_bytes(table.slice(1)))


def date_shard(folder: Path) -> None:
    """Pack a shard with today's date, as tar does by itself."""
    path = folder / "train-000000.tar"
    samples = contents(path)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                source = folder.parent / "member"
                source.write_bytes(data)
                tar.add(source, f"{key}.{extension}")


def total(folder: Path) -> None:
    """Let the totals claim one sample more."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["totals"]["samples"] += 1

    edit_manifest(folder, change)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "train-000001.tar").unlink(), "train-000001.tar: missing"),
        (lambda folder: shutil.copy(folder / "val-000000.tar", folder / "x.tar"), "x.tar: a shard"),
        (flip_byte, "train-000000.tar: SHA-256"),
        (cut_shard, "bytes, the manifest says"),
        (wrong_label, "its JSON says RGB 32 x 64"),
        (swap_pixels, "PNG's SHA-256 differs"),
        (lose_json, "has members ['png']"),
        (repeat_key, "is also in"),
        (leak, "is in the splits"),
        (shift_index, "index.parquet: differs from the shards"),
        (forget_kept_row, "scores.parquet places it in None"),
        (date_shard, "not plain USTAR"),
        (total, "totals.samples"),
    ],
)
def test_damage_is_found_and_named(
    copy: Path,
    damage: Callable[[Path], object],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command exits with 1 and says what is wrong where."""
    damage(copy)

    assert curate.main(["verify", str(copy)]) == 1
    assert named in capsys.readouterr().out


def test_a_whole_set_has_no_problem(whole: Path) -> None:
    """Nothing is found where nothing is wrong, and looking changes nothing."""
    before = {path.name: sha256(path) for path in whole.iterdir() if path.is_file()}

    assert list(problems(whole)) == []
    assert before == {path.name: sha256(path) for path in whole.iterdir() if path.is_file()}

"""Verification takes nothing on trust: every value of a manifest, and bytes of every kind."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from datasets.shards import MANIFEST, file_entry, read_manifest
from infra.config import pretty_json
from pipelines.curate import __main__ as curate
from pipelines.curate.verify import problems
from tests.conftest import picture
from tests.support.curation_jobs import run
from tests.support.damage import changed, damages, values


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curate a very small set once, with a broken file among its inputs."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "raw").mkdir()
    for number in range(3):
        picture(number, 72, 64).save(folder / "raw" / f"photo-{number}.png")
    (folder / "raw" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run(folder / "raw", folder / "set", threshold=60.0, samples_per_shard=2, max_bad=1)
    return folder / "set"


def test_every_value_of_a_manifest_is_checked(whole: Path, tmp_path: Path) -> None:
    """Whichever of them is changed, the sentence names it, or the file that it belongs to."""
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    manifest = read_manifest(folder)
    assert manifest is not None
    assert list(problems(folder)) == []
    places = list(values(manifest))
    assert len(places) > 40
    for place in places:
        damaged = copy.deepcopy(manifest)
        *parents, last = place
        node: Any = damaged
        for name in parents:
            node = node[name]
        node[last] = changed(node[last])
        (folder / MANIFEST).write_bytes(pretty_json(damaged))
        owner = manifest["shards"][place[1]]["name"] if place[0] == "shards" else None
        names = {owner, str(last), str(place[-2]) if len(place) > 1 else None} - {None}

        found = " ".join(problems(folder))
        assert any(str(name) in found for name in names), place


@pytest.mark.parametrize("change", ["lost", "added"])
def test_an_entry_that_is_lost_or_added_is_named(whole: Path, tmp_path: Path, change: str) -> None:
    """A manifest says neither more nor less than can be checked."""
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    manifest = read_manifest(folder)
    assert manifest is not None
    for name in [*manifest] if change == "lost" else ["licence"]:
        other = {key: value for key, value in manifest.items() if key != name}
        other |= {"licence": "free"} if change == "added" else {}
        (folder / MANIFEST).write_bytes(pretty_json(other))

        assert any(name in problem for problem in problems(folder))


@pytest.mark.parametrize("entry", [("shards", 1), ("files", "index.parquet")])
def test_a_key_that_is_misspelt_inside_an_entry_is_named(
    whole: Path, tmp_path: Path, entry: tuple[str, Any]
) -> None:
    """A flipped bit in a name inside the manifest's lists is a sentence too."""
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    part = manifest[entry[0]][entry[1]]
    part["cytes"] = part.pop("bytes")
    (folder / MANIFEST).write_bytes(pretty_json(manifest))

    (problem,) = problems(folder)
    assert "bytes is missing" in problem
    assert "cytes" in problem


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "index.parquet", "scores.parquet", "ignored.parquet", "train-000000.tar"],
)
def test_damaged_bytes_end_in_a_sentence(
    whole: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flipped bits and cut files are found in every kind of file, and never end in a traceback."""
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    content = (folder / name).read_bytes()
    for damaged in damages(content):
        (folder / name).write_bytes(damaged)

        assert curate.main(["verify", str(folder)]) == 1
        found = capsys.readouterr().out
        assert name in found or "the manifest" in found


@pytest.mark.parametrize(
    "name", ["index.parquet", "scores.parquet", "ignored.parquet", "train-000000.tar"]
)
def test_damage_that_the_manifest_agrees_with_ends_in_no_traceback(
    whole: Path, tmp_path: Path, name: str
) -> None:
    """Where length and SHA-256 are those of the damaged file, its content is read all the same."""
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    manifest = read_manifest(folder)
    assert manifest is not None
    content, found = (folder / name).read_bytes(), 0
    for damaged in damages(content):
        (folder / name).write_bytes(damaged)
        entry = file_entry(folder / name)
        agreeing = json.loads(json.dumps(manifest))
        for shard in agreeing["shards"]:
            shard.update(entry if shard["name"] == name else {})
        if name in agreeing["files"]:
            agreeing["files"][name] = entry
        agreeing["totals"]["bytes"] = sum(shard["bytes"] for shard in agreeing["shards"])
        (folder / MANIFEST).write_bytes(pretty_json(agreeing))
        found += bool(list(problems(folder)))

    assert found > 16

"""A latent set is verified in every claim, and mended: exactly what is damaged is encoded again."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets.shards import MANIFEST
from infra.config import pretty_json
from infra.errors import UserError
from pipelines.encode import __main__ as encode
from pipelines.encode import report
from pipelines.encode.job import Encoding
from pipelines.encode.repair import repair
from pipelines.encode.verify import problems
from tests.support.damage import changed, damages, flip, truncate, values
from tests.support.encoding_jobs import (
    InProcess,
    job,
    manifest_of,
    published,
    run,
    write_images,
    write_networks,
)

pytestmark = pytest.mark.usefixtures("probe_of_two")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encode two generations of draws of five images, once."""
    folder = write_networks(tmp_path_factory.mktemp("world"))
    write_images(folder, 5)
    run(folder, folder / "latents", draws=1)
    run(folder, folder / "latents", draws=2)
    return folder


@pytest.fixture
def latents(world: Path, tmp_path: Path) -> Path:
    """Return a copy of the set, to be damaged."""
    return Path(shutil.copytree(world / "latents", tmp_path / "latents"))


@pytest.mark.parametrize(
    ("name", "damage", "encoded"),
    [
        ("train-000000.tar", flip, 1),
        ("train-000001.tar", Path.unlink, 1),
        ("train-000002.tar", truncate, 1),
        ("pairs.parquet", flip, 0),
        ("index.parquet", truncate, 0),
        ("statistics.parquet", flip, 4),
        ("manifest.json", flip, 0),
    ],
)
def test_what_is_damaged_is_made_again_and_nothing_else(
    world: Path, latents: Path, name: str, damage: Callable[[Path], object], encoded: int
) -> None:
    """The bytes come back, whatever generation they are of; only the table of sums costs all."""
    before = published(latents)
    damage(latents / name)
    engine = InProcess()

    assert repair(Encoding(job(world, latents, draws=2)), engine) == [name]
    assert engine.count("encode") == encoded
    assert published(latents) == before
    assert list(problems(latents)) == []


def test_the_command_mends_a_table(latents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify --repair` names what it made again, and then finds nothing wrong."""
    flip(latents / "pairs.parquet")

    assert encode.main(["verify", str(latents)]) == 1
    assert encode.main(["verify", str(latents), "--repair"]) == 0
    assert "pairs.parquet: made again" in capsys.readouterr().out


def test_other_networks_mend_nothing(world: Path, latents: Path, tmp_path: Path) -> None:
    """The field that differs is named, and the damaged file stays."""
    write_networks(tmp_path, seed=3)
    flip(latents / "train-000000.tar")
    other = job(world, latents, draws=2, vae=str(tmp_path / "vae"))

    with pytest.raises(UserError, match=r"vae: .*bring those back"):
        repair(Encoding(other), InProcess())


def named(place: tuple[str | int, ...], manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the words of which one names a place of a manifest."""
    if place[0] == "shards":
        yield manifest["shards"][place[1]]["name"]
    yield from (str(part) for part in place if isinstance(part, str))


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_every_value_of_a_manifest_is_checked(latents: Path, stride: int) -> None:
    """Whichever of them is changed, a sentence names it, or the entry that it belongs to.

    Every eleventh value by default, every one among the slow tests.
    """
    manifest = manifest_of(latents)
    assert list(problems(latents)) == []
    for place in list(values(manifest))[::stride]:
        damaged = copy.deepcopy(manifest)
        *parents, last = place
        node: Any = damaged
        for name in parents:
            node = node[name]
        node[last] = changed(node[last])
        (latents / MANIFEST).write_bytes(pretty_json(damaged))

        found = " ".join(problems(latents))
        assert any(word in found for word in named(place, manifest)), place


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "index.parquet", "pairs.parquet", "statistics.parquet", "train-000000.tar"],
)
def test_damaged_bytes_end_in_a_sentence(latents: Path, name: str) -> None:
    """Flipped bits and cut files are found in every kind of file, and never end in a traceback."""
    for damaged in damages((latents / name).read_bytes()):
        (latents / name).write_bytes(damaged)

        assert list(problems(latents)) != []


def test_a_set_without_its_page_is_not_finished(
    world: Path, latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that died between publishing and its page is completed by the next one."""
    run(world, latents, draws=2)  # the copy is finished, and knows it
    (latents / "report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(report, "build", Path.rmdir)  # dies of its arguments
        with pytest.raises(TypeError):
            run(world, latents, draws=2)
    again = run(world, latents, draws=2)

    assert again.units == []
    assert (latents / "report.html").exists()


def test_overwrite_encodes_the_same_set_anew(world: Path, latents: Path) -> None:
    """With the same settings too; two generations become one, of the same draws."""
    engine = run(world, latents, draws=2, overwrite=True)

    assert engine.count("encode") == 2
    assert len(manifest_of(latents)["generations"]) == 1
    assert list(problems(latents)) == []

"""What may not be copied from an earlier latent set, and what is said of it before and after."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets.latent_format import LatentFormat
from datasets.latent_pairs import PAIRS
from datasets.reading.image_set import ImageSet
from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout
from datasets.shards import INDEX
from infra.config import from_dict, pretty_json
from infra.errors import UsageError, UserError
from infra.storage import sha256
from pipelines.encode.networks import parameters
from pipelines.encode.reuse import EarlierSet, Reuse
from pipelines.encode.verify import problems
from tests.support.encoding_jobs import (
    FEW,
    MANY,
    bytes_of,
    copied,
    encode_few,
    estimated,
    grown_sets,
    job,
    manifest_of,
    members,
)
from tests.support.published_sets import aged

pytestmark = pytest.mark.usefixtures("probe_of_two")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return what `grown_sets` writes."""
    with grown_sets(tmp_path_factory.mktemp("world")) as folder:
        yield folder


def test_a_rotten_shard_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    """A flipped bit does not go on under a new digest; nor does a table of sums."""
    for name in ("train-000000.tar", "statistics.parquet", "index.parquet"):
        earlier = Path(shutil.copytree(world / "earlier", tmp_path / f"without-{name}"))
        data = bytearray((earlier / name).read_bytes())
        data[-3000 if name.endswith("tar") else 40] ^= 1
        (earlier / name).write_bytes(data)
        with pytest.raises(
            UserError, match=rf"{name}.* SHA-256 .*\b\w{{12}}, .*says \w{{12}}; copy"
        ):
            encode_few(world, tmp_path / "set", reuse=str(earlier))
    (earlier / "train-000000.tar").unlink()
    shutil.copy(world / "earlier" / "index.parquet", earlier)
    with pytest.raises(UserError, match=r"1 of 2 shards are missing .* train-000000.tar"):
        encode_few(world, tmp_path / "set", reuse=str(earlier))
    encode_few(world, tmp_path / "set", reuse=str(world / "earlier"))

    assert bytes_of(tmp_path / "set") == bytes_of(world / "earlier")


def test_what_cannot_be_reused_is_refused(world: Path, tmp_path: Path) -> None:
    """The output itself, no set, a set of before there were tables; nothing was begun."""
    with pytest.raises(UsageError, match="is --output too"):
        encode_few(world, world / "earlier", seed=1, overwrite=True, reuse=str(world / "earlier"))
    with pytest.raises(UsageError, match=r"nothing: there is no such folder; a latent set is"):
        encode_few(world, tmp_path / "set", reuse=str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"images: this is an image set; a latent set is"):
        encode_few(world, tmp_path / "set", reuse=str(world / "images"))
    old = Path(shutil.copytree(world / "earlier", tmp_path / "old"))
    manifest = manifest_of(old)
    del manifest["files"]["statistics.parquet"]
    (old / "manifest.json").write_bytes(pretty_json(manifest))
    with pytest.raises(UsageError, match=r"has no statistics.parquet"):
        encode_few(world, tmp_path / "set", reuse=str(old))


def test_a_set_that_grew_from_one_without_a_table_gives_what_is_in_it(
    world: Path, tmp_path: Path
) -> None:
    """Draws that were added since are copied; what no sums are known of is computed."""
    old = tmp_path / "old"
    encode_few(world, old, draws=1)
    manifest = manifest_of(old)
    del manifest["files"]["statistics.parquet"]
    (old / "manifest.json").write_bytes(pretty_json(manifest))
    (old / "statistics.parquet").unlink()
    encode_few(world, old, draws=2)
    encode_few(world, tmp_path / "set", reuse=str(old))

    assert list(problems(old)) == []
    assert bytes_of(tmp_path / "set") == bytes_of(world / "earlier")
    assert copied(tmp_path / "set")[1] == FEW


def test_a_set_without_checksums_gets_them_by_being_copied(world: Path, tmp_path: Path) -> None:
    """As the refusal of --check-data advises; growing it would leave old shards without."""
    old = aged(Path(shutil.copytree(world / "earlier", tmp_path / "old")), INDEX, PAIRS)
    encode_few(world, tmp_path / "new", reuse=str(old))
    encode_few(world, old, draws=3)

    assert next(iter(Loader(LatentPairs(tmp_path / "new", checked=True), Layout(), LoaderConfig())))
    assert bytes_of(tmp_path / "new") == bytes_of(world / "earlier")
    assert list(problems(old)) == []
    with pytest.raises(UserError, match=r"a new folder with --reuse"):
        LatentPairs(old, checked=True)


def earlier_set(world: Path, digest: str) -> EarlierSet:
    """Open the earlier set as a worker does."""
    latent = from_dict(LatentFormat, manifest_of(world / "earlier")["latent"])
    reuse = Reuse(folder=str(world / "earlier"), manifest=digest, sources=True)
    return EarlierSet(reuse, latent, keep_images=False)


def test_a_stored_draw_is_trusted_only_if_it_is_drawn_again(world: Path) -> None:
    """Of a key whose parameters are not those of seed, key and number the targets remain."""
    earlier = earlier_set(world, sha256(world / "earlier" / "manifest.json"))
    rule = job(world, world, degradation="gray").rule
    hashes = {row["key"]: "" for row in ImageSet(world / "images").rows.to_pylist()}
    for name, content in members(world / "images").items():
        if name.endswith(".json"):
            label = json.loads(content)
            hashes[label["key"]] = label["sha256"]
    found = earlier.find(hashes, range(3), lambda key, draw: parameters(rule, key, draw))
    others = earlier.find(hashes, range(3), lambda key, draw: parameters(rule, key + "x", draw))

    assert all({"source_0.npy", "source_1.npy"} < copies.keys() for copies in found.values())
    assert all(copies.keys() == {"target_0.npy", "target_1.npy"} for copies in others.values())
    assert len(found) == len(others) == FEW
    with pytest.raises(UserError, match="has changed since this run began"):
        earlier_set(world, "0" * 64)


def test_verify_finds_a_table_of_other_sums(world: Path, tmp_path: Path) -> None:
    """The statistics of the manifest are those of its latents."""
    copy = Path(shutil.copytree(world / "earlier", tmp_path / "copy"))
    manifest = manifest_of(copy)
    manifest["statistics"]["source"]["sigma"][0] *= 1.01
    (copy / "manifest.json").write_bytes(pretty_json(manifest))

    table, claim = problems(copy)
    assert table == "statistics.parquet: its latents add up to another sigma of the source latents"
    assert claim.startswith("manifest.json: statistics.source.sigma is")


def test_the_dry_run_counts_what_is_copied(world: Path, tmp_path: Path) -> None:
    """Of eight images five have their targets and sources already."""
    fields: dict[str, Any] = {
        "input": str(world / "more" / "images"),
        "degradation": "gray",
        "draws": 2,
    }
    without = estimated(world, tmp_path / "set", **fields)
    printed = estimated(world, tmp_path / "set", reuse=str(world / "earlier"), **fields)

    assert "10 targets and 10 sources of 8 images" in printed
    assert "targets and sources of images that have not changed are copied" in printed
    assert petaflop(printed) == pytest.approx(petaflop(without) * (MANY - FEW) / MANY, rel=0.02)


def petaflop(printed: str) -> float:
    """Read the sum of a dry run."""
    return float(printed.partition(" PFLOP in all")[0].rpartition(" ")[2])

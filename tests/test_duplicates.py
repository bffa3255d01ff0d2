"""Copies of a photograph: found, kept in one split, kept once on demand, kept out of test sets."""

import io
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.fingerprint import NEAR, near_pairs, perceptual_hash, unpacked
from datasets.sample import CANDIDATE, empty_row
from datasets.shards import MANIFEST, file_entry, parquet_bytes, read_manifest
from datasets.verify import problems
from infra.config import pretty_json
from infra.errors import UsageError, UserError
from pipelines.curate import exclusion
from pipelines.curate.config import CurateConfig, CutRule
from pipelines.curate.duplicates import find_copies
from pipelines.curate.selection import group_splits, uniform_of
from tests.conftest import Pictures, picture
from tests.support.curation_jobs import published, run

RAMP = "953d3ea565af2e9578ab29957b2f0165eacd055ceac1015b7b50296a7b54286a"
KEEP_ALL: dict[str, Any] = {
    "scorer": "none",
    "threshold": None,
    "stride": 64,
    "samples_per_shard": 64,
}


def reencoded(image: Image.Image, quality: int = 75) -> Image.Image:
    """Compress an image as JPEG."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data)


def hashed(image: Image.Image) -> str:
    """Return the perceptual hash of an image."""
    found = perceptual_hash(np.asarray(image.convert("RGB")))
    assert found is not None
    return found


def distance(a: str, b: str) -> int:
    """Count the bits in which two hashes differ."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the first row of each image of a set."""
    table = pq.read_table(folder / "scores.parquet").to_pylist()
    return {row["source"]: row for row in reversed(table)}


def splits(folder: Path) -> dict[str, str]:
    """Return the split of each kept image."""
    return {source: row["split"] for source, row in rows(folder).items() if row["split"]}


def test_the_hash_of_a_ramp_is_known() -> None:
    """Integer arithmetic: the same bits on every processor."""
    x, y = np.meshgrid(np.arange(320), np.arange(240))
    image = np.stack([x * 255 // 319, y * 255 // 239, (x + y) % 256], axis=2).astype(np.uint8)

    assert perceptual_hash(image) == RAMP


@pytest.mark.parametrize("seed", range(4))
def test_copies_look_alike_and_other_pictures_do_not(seed: int) -> None:
    """JPEG, half and a third of the size, grey, brightness: near; another picture: far."""
    image = picture(seed, 480, 360)
    copies = [
        reencoded(image, 40),
        reencoded(image.resize((240, 180), Image.Resampling.LANCZOS)),
        image.resize((160, 120), Image.Resampling.BICUBIC),
        image.convert("L"),
        image.point(lambda value: value * 0.9),
    ]

    assert max(distance(hashed(image), hashed(copy)) for copy in copies) <= NEAR
    assert distance(hashed(image), hashed(picture(seed + 10, 480, 360))) > 2 * NEAR


def test_an_image_of_one_grey_looks_like_nothing() -> None:
    """Black frames are no copies of each other."""
    assert perceptual_hash(np.full((50, 60, 3), 7, np.uint8)) is None


def flipped(digits: str, bits: range) -> str:
    """Change some of the 256 bits of a hash."""
    return f"{int(digits, 16) ^ sum(1 << bit for bit in bits):064x}"


def test_near_pairs_are_all_pairs_within_the_threshold() -> None:
    """As counted naively, at and around the threshold."""
    rng = np.random.default_rng(3)
    hashes = [rng.bytes(32).hex() for _ in range(20)]
    hashes += [flipped(hashes[i], range(5 * i, 5 * i + NEAR - 1 + i % 3)) for i in range(12)]
    naive = [
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if distance(hashes[i], hashes[j]) <= NEAR
    ]

    assert near_pairs(unpacked(hashes)) == naive
    assert len(naive) == 8


def images(hashes: Mapping[str, tuple[str | None, str | None]]) -> pa.Table:
    """Make candidates: {image: (SHA-256, perceptual hash)}."""
    made = [
        empty_row(key=key, source=key, origin="", index=1, source_sha256=sha, source_phash=phash)
        for key, (sha, phash) in hashes.items()
    ]
    return pa.Table.from_pylist(made, schema=CANDIDATE)


def test_a_chain_is_one_group_but_its_ends_are_no_copies() -> None:
    """The ends differ in more bits than allowed: both are kept, b between them is not."""
    a = "5" * 64
    b, c = flipped(a, range(NEAR)), flipped(a, range(2 * NEAR))
    found = find_copies(
        images(
            {
                "a": ("1", a),
                "b": ("2", b),
                "c": ("3", c),
                "same as c": ("3", c),
                "flat": ("4", None),
                "also flat": ("4", None),
                "unread": (None, None),
                "also unread": (None, None),
            }
        )
    )

    assert found.group == {
        **{"a": "a", "b": "a", "c": "a", "same as c": "a"},
        **{"flat": "also flat", "also flat": "also flat"},
        **{"unread": "unread", "also unread": "also unread"},
    }
    assert found.dropped(found.content) == {"b": "a", "same as c": "c", "flat": "also flat"}
    assert found.dropped({"b", "c", "unread"}) == {"c": "b"}


names = st.text("abcdef", min_size=1, max_size=3)


@given(
    st.dictionaries(names, st.sampled_from("xyz"), min_size=1, max_size=12),
    st.dictionaries(names, st.sampled_from("xyz"), max_size=12),
    st.floats(0, 0.9),
    st.integers(0, 3),
)
def test_new_images_never_move_an_image_out_of_validation(
    first: dict[str, str], more: dict[str, str], fraction: float, seed: int
) -> None:
    """Whatever groups the new ones join; and without copies an image's split is its own."""
    rule = CutRule(val_fraction=fraction, seed=seed)

    def chosen(groups: dict[str, str]) -> dict[str, str]:
        of_group = group_splits(groups, rule, ())
        return {source: of_group[group] for source, group in groups.items()}

    before, after = chosen(first), chosen(more | first)
    alone = chosen({source: source for source in first})

    assert all(after[source] == "val" for source in first if before[source] == "val")
    assert all(before[source] == "val" for source in first if alone[source] == "val")


@pytest.fixture
def twins(pictures: Pictures) -> Path:
    """Write ten pictures; five also with other names, three as they are and two as small JPEGs."""
    source = pictures(10)
    for number in (0, 1, 3):
        shutil.copy(source / f"photo-{number:02d}.png", source / f"same-{number}.png")
    for number in (4, 6):
        image = Image.open(source / f"photo-{number:02d}.png")
        reencoded(image.resize((image.width * 3 // 4, 96))).save(source / f"small-{number}.png")
    return source


PAIRS = {
    **{f"same-{number}": f"photo-{number:02d}" for number in (0, 1, 3)},
    **{f"small-{number}": f"photo-{number:02d}" for number in (4, 6)},
}


@pytest.mark.parametrize("seed", range(3))
def test_copies_share_a_split(twins: Path, tmp_path: Path, seed: int) -> None:
    """All are kept by default; the column `group` names the first; verify agrees."""
    run(twins, tmp_path / "set", val_fraction=0.5, seed=seed, **KEEP_ALL)
    found = rows(tmp_path / "set")

    assert len(splits(tmp_path / "set")) == 15
    assert set(splits(tmp_path / "set").values()) == {"train", "val"}
    for copy, original in PAIRS.items():
        assert found[copy]["group"] == found[original]["group"] == original
        assert found[copy]["split"] == found[original]["split"]
    assert list(problems(tmp_path / "set")) == []
    manifest = read_manifest(tmp_path / "set")
    assert manifest is not None
    assert manifest["input"]["copies"] == 5


def test_copies_are_kept_once_on_demand(twins: Path, tmp_path: Path) -> None:
    """The first by key of those that are good enough; the others say of what they are copies."""
    run(twins, tmp_path / "set", duplicates="first", **KEEP_ALL)
    found = rows(tmp_path / "set")

    dropped = {key: row["match"] for key, row in found.items() if row["drop_reason"] == "duplicate"}
    assert dropped == PAIRS
    assert len(splits(tmp_path / "set")) == 10


def test_a_copy_that_is_not_kept_takes_no_place(pictures: Pictures, tmp_path: Path) -> None:
    """A first image that is too small for a patch leaves the place to its larger copy."""
    source = pictures(2)
    image = Image.open(source / "photo-00.png")
    image.resize((image.width * 3 // 8, 48)).save(source / "a-thumbnail.png")
    run(source, tmp_path / "set", duplicates="first", **KEEP_ALL)
    found = rows(tmp_path / "set")

    assert found["a-thumbnail"]["drop_reason"] == "too_small"
    assert found["photo-00"]["drop_reason"] is None
    assert found["photo-00"]["group"] == "a-thumbnail"


def test_a_group_in_two_splits_is_found_by_verify(twins: Path, tmp_path: Path) -> None:
    """By the table, of which the manifest has the right SHA-256: the sources have two names."""
    folder = tmp_path / "set"
    run(twins, folder, val_fraction=0.5, **KEEP_ALL)
    table, manifest = pq.read_table(folder / "scores.parquet"), read_manifest(folder)
    place = table.schema.get_field_index("group")
    table = table.set_column(place, "group", pa.array(["one"] * len(table)))
    (folder / "scores.parquet").write_bytes(parquet_bytes(table))
    assert manifest is not None
    manifest["files"]["scores.parquet"] = file_entry(folder / "scores.parquet")
    (folder / MANIFEST).write_bytes(pretty_json(manifest))

    assert any("copies of one are in two splits" in problem for problem in problems(folder))


def test_validation_images_do_not_become_training_images(
    pictures: Pictures, tmp_path: Path
) -> None:
    """A smaller fraction is refused, before anything is written, and --hold-out is a way out."""
    source = pictures(12)
    run(source, tmp_path / "set", val_fraction=0.6, **KEEP_ALL)
    held = {key for key, split in splits(tmp_path / "set").items() if split == "val"}
    before = published(tmp_path / "set"), (tmp_path / "set" / "config.json").read_bytes()
    with pytest.raises(UsageError, match=r"4 images.*would become training.*--hold-out 0\.6"):
        run(source, tmp_path / "set", val_fraction=0.1, **KEEP_ALL)
    assert before == (published(tmp_path / "set"), (tmp_path / "set" / "config.json").read_bytes())

    run(source, tmp_path / "set", val_fraction=0.1, hold_out=0.6, **KEEP_ALL)
    after = splits(tmp_path / "set")
    left_out = {k for k, row in rows(tmp_path / "set").items() if row["drop_reason"] == "held_out"}
    assert {key for key, split in after.items() if split == "val"} | left_out == held
    run(source, tmp_path / "fresh", val_fraction=0.1, hold_out=0.6, **KEEP_ALL)
    assert published(tmp_path / "set") == published(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["seed", "list", "name"])
def test_no_change_moves_validation_images_into_training(
    pictures: Pictures, tmp_path: Path, change: str
) -> None:
    """Another seed, a shorter list, another name of the same file; the ways out are open."""
    source, listed = pictures(8), tmp_path / "list.txt"
    run(source, tmp_path / "set", val_fraction=0.5, **KEEP_ALL)
    held = sorted(key for key, split in splits(tmp_path / "set").items() if split == "val")
    fields: dict[str, Any] = {"val_fraction": 0.5}
    if change == "seed":
        fields["seed"] = 4
    elif change == "list":
        listed.write_text("\n".join(held[1:]))
        fields = {"val_fraction": 0.0, "val_list": str(listed)}
    else:
        names = (f"renamed-{number}" for number in range(100))
        name = next(name for name in names if uniform_of(name, 0) >= 0.5)
        (source / f"{held[0]}.png").rename(source / f"{name}.png")
        held[0] = name
    with pytest.raises(UsageError, match=r"would become training.*list of that set.*--output"):
        run(source, tmp_path / "set", **fields, **KEEP_ALL)

    run(source, tmp_path / "another", **fields, **KEEP_ALL)
    listed.write_text("\n".join(held))
    run(source, tmp_path / "set", val_list=str(listed), val_fraction=0.0, **KEEP_ALL)
    assert {key for key, split in splits(tmp_path / "set").items() if split == "val"} == set(held)


def test_what_was_held_out_once_is_remembered(pictures: Pictures, tmp_path: Path) -> None:
    """Although a cut in between, of fewer images, does not have the photograph at all."""
    source = pictures(8)
    for fields in ({"val_fraction": 0.6}, {"val_fraction": 0.0, "first": 1}):
        run(source, tmp_path / "set", **fields, **KEEP_ALL)
    with pytest.raises(UsageError, match=r"would become training.*--hold-out 0\.6"):
        run(source, tmp_path / "set", val_fraction=0.1, **KEEP_ALL)

    run(source, tmp_path / "set", val_fraction=0.1, hold_out=0.6, **KEEP_ALL)


def test_a_list_is_the_validation_split(twins: Path, tmp_path: Path) -> None:
    """Exactly its images and their copies; the manifest knows it by content, not by its path."""
    for name, lines in {"one": "photo-00\n\nphoto-07\n", "two": "photo-07\nphoto-00"}.items():
        (tmp_path / name).write_text(lines)
        fields = {"val_fraction": 0.0, "val_list": str(tmp_path / name)}
        run(twins, tmp_path / f"set {name}", **fields, **KEEP_ALL)

    val = {key for key, split in splits(tmp_path / "set one").items() if split == "val"}
    assert val == {"photo-00", "same-0", "photo-07"}
    assert published(tmp_path / "set one") == published(tmp_path / "set two")


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("photo-00\nphoto-77\nphoto-01.png", "2 of 3 lines.*'photo-01.png'"),
        ("\n", "is empty"),
        (None, "list.txt: no such file"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    pictures: Pictures, tmp_path: Path, lines: str | None, named: str
) -> None:
    """A typing error would be a training image."""
    if lines is not None:
        (tmp_path / "list.txt").write_text(lines)
    fields = {"val_fraction": 0.0, "val_list": str(tmp_path / "list.txt")}
    with pytest.raises(UsageError, match=named):
        run(pictures(2), tmp_path / "set", **fields, **KEEP_ALL)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"val_fraction": 0.2, "hold_out": 0.1}, "hold_out 0.1: at least val_fraction, 0.2"),
        ({"val_fraction": 0.2, "val_list": "x"}, "--val-fraction 0"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(fields: dict[str, Any], named: str) -> None:
    """Two answers to what is held out."""
    with pytest.raises(ValueError, match=named):
        CutRule(**fields)


@pytest.mark.parametrize("kind", ["set", "folder", "archive", "image"])
def test_no_copy_of_an_excluded_image_is_taken(twins: Path, tmp_path: Path, kind: str) -> None:
    """Equal files and small JPEGs of a test set's images are dropped with the name of theirs."""
    test = tmp_path / "celeba"
    test.mkdir()
    for number in (0, 4):
        shutil.copy(twins / f"photo-{number:02d}.png", test / f"{number}.png")
    given: Path = test
    if kind == "set":
        given = tmp_path / "sets" / "celeba"
        run(test, given, **KEEP_ALL)
    elif kind == "archive":
        given = tmp_path / "celeba.zip"
        with zipfile.ZipFile(given, "w") as archive:
            for path in test.iterdir():
                archive.write(path, path.name)
    elif kind == "image":
        given = test / "4.png"
    expected = {"photo-04": "4", "small-4": "4"}
    expected |= {} if kind == "image" else {"photo-00": "0", "same-0": "0"}
    for _ in range(2):
        run(twins, tmp_path / "set", exclude=(str(given),), duplicates="first", **KEEP_ALL)
        found = rows(tmp_path / "set")
        dropped = {k: row["match"] for k, row in found.items() if row["drop_reason"] == "excluded"}
        assert dropped == {key: f"{given.name}/{name}" for key, name in expected.items()}


def test_an_excluded_image_is_called_by_the_name_that_was_given(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NAME/KEY for folders, archives and sets, or the name of what was given, whatever is kept."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures(1), "test")
    shutil.copytree("test", "a=b")
    run(Path("test"), tmp_path / "set", val_fraction=0, **KEEP_ALL)
    with zipfile.ZipFile("test.zip", "w") as archive:
        archive.write("test/photo-00.png", "photo-00.png")
    given = ("test", "celeba=test", "a=b", "lfw/all=test.zip", "test.zip", "wider=set", "set")
    names = ("test", "celeba", "a=b", "lfw/all", "test.zip", "wider", "set")
    fields = CurateConfig(cut=CutRule(exclude=given)).absolute().cut.exclude
    found = exclusion.read_excluded(fields, tmp_path / "cache")

    assert found["name"].to_pylist() == sorted(f"{name}/photo-00" for name in names)
    assert len(set(found["source_sha256"].to_pylist())) == 1


def test_another_excluded_set_cuts_again(twins: Path, tmp_path: Path) -> None:
    """No score is computed twice, and the bytes are those of a fresh run."""
    run(twins, tmp_path / "set", **KEEP_ALL)
    again = run(twins, tmp_path / "set", exclude=(str(twins / "photo-00.png"),), **KEEP_ALL)
    run(twins, tmp_path / "fresh", exclude=(str(twins / "photo-00.png"),), **KEEP_ALL)

    assert again.count("score") == 0
    assert published(tmp_path / "set") == published(tmp_path / "fresh")
    assert (
        run(twins, tmp_path / "set", exclude=(str(twins / "photo-00.png"),), **KEEP_ALL).units == []
    )


def test_an_excluded_image_that_is_broken_is_known_by_its_bytes(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is counted aloud."""
    folder = pictures(2)
    (folder / "cut.png").write_bytes((folder / "photo-00.png").read_bytes()[:400])
    found = exclusion.read_excluded([str(folder)], tmp_path / "cache").to_pylist()

    assert [row["source_phash"] is None for row in found] == [True, False, False]
    assert "3 images, 1 of them by SHA-256 only" in capsys.readouterr().out


def test_what_cannot_be_excluded_is_refused(twins: Path, tmp_path: Path) -> None:
    """A path that is not there; a set made before images had hashes, with both ways out."""
    with pytest.raises(UsageError, match=r"--exclude .*nowhere: no such file"):
        run(twins, tmp_path / "set", exclude=(str(tmp_path / "nowhere"),), **KEEP_ALL)
    with pytest.raises(UsageError, match=r"--exclude a\.b=.*: no such file.*'a\.b' is no NAME"):
        run(twins, tmp_path / "set", exclude=(f"a.b={twins}",), **KEEP_ALL)
    old = tmp_path / "old"
    run(twins, old, **KEEP_ALL)
    table = pq.read_table(old / "scores.parquet").drop_columns("source_phash")
    (old / "scores.parquet").write_bytes(parquet_bytes(table))
    with pytest.raises(UsageError, match=r"no source_phash; curate it again, or .* photographs"):
        run(twins, tmp_path / "set", exclude=(str(old),), **KEEP_ALL)

    run(twins, old, val_fraction=0.35, **KEEP_ALL)
    for way_out in (old, twins):
        with pytest.raises(UserError, match=r"no candidate was kept: {'excluded': "):
            run(twins, tmp_path / "set", exclude=(str(way_out),), **KEEP_ALL)

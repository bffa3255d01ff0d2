"""Values depend on the pictures alone: not on names, order, containers, batches or units."""

import dataclasses
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.sources import ImageRef
from infra.config import digest
from models.metrics.catalog import METRICS
from pipelines.evaluate.config import SetsConfig
from pipelines.evaluate.judges import look
from pipelines.evaluate.measured import Measured
from pipelines.evaluate.pairs import Pairs, find_pairs
from pipelines.evaluate.worker import Group, MeasurePictures, MeasureSpec
from pipelines.jobs.stage import Resources
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.evaluate_jobs import CHEAP, SIDE, evaluate, numbers, write_pictures

METHODS = ("a", "b")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write HQ pictures and those of two methods, and evaluate them once."""
    folder = tmp_path_factory.mktemp("world")
    write_pictures(folder / "hq")
    write_pictures(folder / "a", noise=5)
    write_pictures(folder / "b", noise=20)
    write_pictures(folder / "mean", noise=2)
    run(folder, folder / "out")
    return folder


def run(world: Path, output: Path, **fields: Any) -> dict[str, dict[str, float | None]]:
    """Evaluate both methods; returns the values."""
    methods = fields.pop("methods", {name: world / name for name in METHODS})
    return numbers(evaluate(output, methods, **{"reference": world / "hq", **fields}))


def test_identical_pictures_are_perfect(world: Path, tmp_path: Path) -> None:
    """Similarity 1, PSNR at the bound that its definition has, no difference of colour."""
    metrics = ("psnr", "ssim", "colour", "indrmse", "indrmse_pmrf")
    found = run(
        world,
        tmp_path,
        methods={"same": world / "hq"},
        posterior_mean=world / "hq",
        metrics=metrics,
    )["same"]

    assert found == {
        "psnr": pytest.approx(80),
        "ssim": pytest.approx(1),
        "colour": 0,
        "indrmse": 0,
        "indrmse_pmrf": 0,
    }


def test_values_are_those_of_the_metrics_themselves(world: Path) -> None:
    """The mean over the pictures in the summary; each picture's in the table."""
    import torch

    rows = pq.read_table(world / "out" / "values.parquet").to_pylist()
    assert [(row["method"], row["key"]) for row in rows] == [
        (method, f"face-{number}") for method in METHODS for number in range(4)
    ]
    for row in rows:
        names = (world / where / f"{row['key']}.png" for where in (row["method"], "hq"))
        mine, hq = (torch.from_numpy(np.asarray(Image.open(name)).copy()) for name in names)
        pair = [levels.permute(2, 0, 1)[None] for levels in (mine, hq)]
        for name in CHEAP:
            needed = pair[: 2 if METRICS[name].needs_reference else 1]
            assert row[name] == pytest.approx(float(METRICS[name].load().compute(*needed)))
    mean = np.mean([row["psnr"] for row in rows if row["method"] == "a"])
    assert run(world, world / "out")["a"]["psnr"] == pytest.approx(mean)


def test_the_root_of_a_mean_is_taken_after_the_mean(world: Path, tmp_path: Path) -> None:
    """PMRF's IndRMSE is the root of the whole set's mean square, the authors' a mean of roots."""
    found = run(
        world, tmp_path, posterior_mean=world / "mean", metrics=("indrmse", "indrmse_pmrf")
    )["a"]
    squares = [
        np.mean(
            (
                np.asarray(Image.open(world / "a" / f"face-{number}.png")).astype(np.float64)
                - np.asarray(Image.open(world / "mean" / f"face-{number}.png"))
            )
            ** 2
        )
        for number in range(4)
    ]

    assert found["indrmse_pmrf"] == pytest.approx(np.sqrt(np.mean(squares)))
    assert found["indrmse"] == pytest.approx(np.mean(np.sqrt(squares)) / 255)


def test_methods_keep_their_values_in_any_order_and_under_any_name(
    world: Path, tmp_path: Path
) -> None:
    """A swap of the folders swaps the numbers, and turns the sign of the difference."""
    first = evaluate(world / "out", {n: world / n for n in METHODS}, reference=world / "hq")
    swapped = evaluate(tmp_path, {"a": world / "b", "b": world / "a"}, reference=world / "hq")
    reordered = evaluate(tmp_path, {n: world / n for n in "ba"}, reference=world / "hq")

    assert numbers(swapped) == {"a": numbers(first)["b"], "b": numbers(first)["a"]}
    assert swapped.methods["b"].values == first.methods["a"].values
    assert numbers(reordered) == numbers(first)
    turned = {one.metric: -one.value for one in first.differences}
    for other in (swapped, reordered):
        assert {one.metric: one.value for one in other.differences} == turned


def test_values_do_not_depend_on_where_pictures_lie(world: Path, tmp_path: Path) -> None:
    """A folder, a .zip and a .tar of it, files in another order; the digests are equal too."""
    for name in METHODS:
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as packed:
            for path in sorted((world / name).iterdir(), reverse=True):
                packed.write(path, path.name)
    with tarfile.open(tmp_path / "hq.tar", "w") as tar:
        for path in sorted((world / "hq").iterdir(), reverse=True):
            tar.add(path, path.name)
    methods = {name: tmp_path / f"{name}.zip" for name in METHODS}
    packed_up = evaluate(tmp_path / "out", methods, reference=tmp_path / "hq.tar")
    plain = evaluate(world / "out", {n: world / n for n in METHODS}, reference=world / "hq")

    assert packed_up.test_set == plain.test_set
    for name in METHODS:
        assert packed_up.methods[name].values == plain.methods[name].values
        assert packed_up.methods[name].pixels == plain.methods[name].pixels


def test_values_do_not_depend_on_units_and_workers(world: Path, tmp_path: Path) -> None:
    """One unit for all pictures, or one for each key as many workers have it."""

    class Many(InProcess):
        def workers(self, resources: Resources) -> int:
            """Return more than there are pictures."""
            return 50

    alone, together = Many(), InProcess()
    with pytest.MonkeyPatch.context() as patch:
        run(world, tmp_path / "alone", engine=alone)
        patch.setattr("pipelines.evaluate.job.SHARES", 0.1)
        run(world, tmp_path / "together", engine=together)

    assert (alone.count("measure"), together.count("measure")) == (4, 1)
    tables = [(tmp_path / name / "values.parquet").read_bytes() for name in ("alone", "together")]
    assert tables[0] == tables[1]


def test_a_batch_has_the_values_of_its_pictures_alone(tmp_path: Path) -> None:
    """As a GPU takes them, pictures of one size together; here on a CPU, of two sizes."""
    for name, noise in (("hq", 0), ("a", 5)):
        write_pictures(tmp_path / name, 5, noise=noise)
        for number in (1, 4):
            picture(number, 20, 24).save(tmp_path / name / f"face-{number}.png")
    sets = SetsConfig(restored=(f"a={tmp_path / 'a'}",), reference=str(tmp_path / "hq"))
    pairs = find_pairs(sets, tmp_path / "kept", has_hq=True)
    alone, batched = (measured(pairs, tmp_path, batch) for batch in (1, 3))

    assert alone.keys() == batched.keys()
    for name, one in alone.items():
        assert batched[name].pixels == one.pixels
        assert batched[name].values == pytest.approx(one.values, rel=1e-9, abs=1e-9)


def measured(pairs: Pairs, folder: Path, batch: int) -> dict[str, Measured]:
    """Measure all pictures in one unit with passes of so many pictures."""
    spec = MeasureSpec(
        digests=look(CHEAP, "", pairs).digests,
        weights="",
        device="cpu",
        batch=batch,
        threads=1,
        features=str(folder / "features"),
        notes=str(folder / "notes"),
        session=str(batch),
    )
    groups = [
        Group(
            key=key,
            pictures={role: refs[key] for role, refs in pairs.roles.items()},
            values={"=a": CHEAP},
        )
        for key in pairs.keys
    ]
    unit = {"name": "unit", "what": "all", "groups": [dataclasses.asdict(one) for one in groups]}
    done = MeasurePictures(spec)(unit)
    assert not done["failures"]
    rows = [Measured.from_values(row) for row in done["measured"]]
    return {one.mark: one for one in rows}


def test_keys_may_have_folders_dots_and_any_script(tmp_path: Path) -> None:
    """They are the path in the folder without the extension, made safe, in both folders alike."""
    names = ("deep/er/face.png", "v1.2/face.old.png", "面/Gesicht ä.png")
    for where in ("hq", "a"):
        for number, name in enumerate(names):
            path = tmp_path / where / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number, SIDE, SIDE).save(path)
    summary = evaluate(tmp_path / "out", {"a": tmp_path / "a"}, reference=tmp_path / "hq")
    keys = pq.read_table(tmp_path / "out" / "values.parquet")["key"].to_pylist()

    assert summary.test_set.n == len(set(keys)) == 3
    assert summary.test_set.keys == digest(sorted(keys))
    assert summary.methods["a"].values["ssim"].value == pytest.approx(1)


def test_of_a_restored_folder_the_first_restorations_count(world: Path, tmp_path: Path) -> None:
    """What `pipelines.restore` lays beside them, further samples and spreads, is no key."""
    shutil.copytree(world / "a", tmp_path / "a")
    (tmp_path / "a" / ".restore").mkdir()
    picture(9, SIDE, SIDE).save(tmp_path / "a" / "face-0.sample-1.png")
    picture(9, SIDE, SIDE).save(tmp_path / "a" / "face-0.spread.png")

    assert run(world, tmp_path / "out", methods={"a": tmp_path / "a"}) == {
        "a": run(world, world / "out")["a"]
    }


def test_marks_tell_files_apart() -> None:
    """By place, length and stamp; a member of an archive by its place in it too."""
    from pipelines.evaluate.pairs import mark

    one = ImageRef(key="k", origin="o", file="k.png", path="/k.png", size=1, stamp=1)
    changes: list[dict[str, Any]] = [
        {"path": "/l.png"},
        {"size": 2},
        {"stamp": 2},
        {"member": "m"},
        {"offset": 9},
    ]
    marks = {mark(one), *(mark(dataclasses.replace(one, **change)) for change in changes)}

    assert len(marks) == 1 + len(changes)
    assert mark(dataclasses.replace(one, key="other", origin="elsewhere")) == mark(one)

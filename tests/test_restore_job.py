"""A restoration job is a function of pictures, model and settings, whatever befalls it."""

import gc
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from datasets.sources import ImageRef
from infra import storage
from infra.errors import BudgetExceeded, UsageError, UserError
from models.bundle import load_bundle
from models.predictor.swinir import SwinIR
from models.ranges import uint8_to_unit, unit_to_uint8
from models.vae.sim_vae import SimVAE
from models.velocity.looformer import LooUFormer
from pipelines.restore.config import RestoreRule
from pipelines.restore.estimate import estimate
from pipelines.restore.job import Restoration, unit_size, units
from pipelines.restore.networks import FaceRestorer
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.encoding_jobs import Stopping
from tests.support.restore_jobs import job, made, pictures, restore
from tests.support.tiny_bundle import SIDE, write_faces, write_tiny_bundle

FACES = 5
KEYS = ["face-0", "face-1", "face-3", "face-4", "more/face-2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model and five faces, and restore them once in peace."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_bundle(folder / "model", alignment="any")
    write_tiny_bundle(folder / "other", seed=1, alignment="any")
    write_faces(folder / "lq", FACES)
    restore(folder / "lq", folder / "whole", folder / "model")
    return folder


def rows(output: Path) -> dict[str, dict[str, Any]]:
    """Return the table of an output by key."""
    return {row["key"]: row for row in pq.read_table(output / "results.parquet").to_pylist()}


def test_beside_each_picture_lies_how_it_was_made(world: Path) -> None:
    """The JSON names input, model and settings; the PNG carries the same settings as text."""
    digest = load_bundle(world / "model").config.digest
    said = json.loads((world / "whole" / "more" / "face-2.json").read_text())
    with Image.open(world / "whole" / "more" / "face-2.png") as restored:
        text, size = dict(restored.info), restored.size

    assert size == (SIDE, SIDE)
    assert said["key"] == "more/face-2"
    assert said["input"]["sha256"] == storage.sha256(world / "lq" / "more" / "face-2.png")
    assert said["settings"]["model"] == text["latent-pmrf:model"] == digest
    carried = {name.removeprefix("latent-pmrf:"): value for name, value in text.items()}
    assert {name: str(value) for name, value in said["settings"].items()} == {
        "device": "cpu",
        "execution": "eager",
        **{name: carried[name] for name in said["settings"].keys() - {"device", "execution"}},
    }
    assert said["faces"][0].items() >= {"number": 1, "outcome": "restored"}.items()
    assert [*rows(world / "whole")] == KEYS
    assert pq.read_table(world / "whole" / "faces.parquet").column("key").to_pylist() == KEYS


def test_a_restored_picture_is_the_restorer_s(world: Path) -> None:
    """To the level: nothing between the networks and the file changes a pixel."""
    restorer = FaceRestorer(RestoreRule(model=str(world / "model"), device="cpu"))
    face = np.asarray(Image.open(world / "lq" / "face-1.png"))
    (expected,) = restorer([face], ["face-1"])

    assert (np.asarray(Image.open(world / "whole" / "face-1.png")) == expected.restored).all()
    assert (expected.restored != face).mean() > 0.9  # the input is never passed off as output


def test_the_posterior_mean_is_kept_on_demand(world: Path, tmp_path: Path) -> None:
    """It is what --method posterior-mean restores, and the page shows it; of whole faces only."""
    fields = {"reference": str(world / "lq"), "keep_posterior_mean": True}
    restore(world / "lq", tmp_path / "out", world / "model", **fields)
    restore(world / "lq", tmp_path / "means", world / "model", method="posterior-mean")
    page = (tmp_path / "out" / "report.html").read_text()

    kept = Image.open(tmp_path / "out" / "face-1.posterior-mean.png")
    mean = Image.open(tmp_path / "means" / "face-1.png")
    assert (np.asarray(kept) == np.asarray(mean)).all()
    for what in ("input", "posterior mean", "restored", "HQ"):
        assert page.count(f"<figcaption>{what}</figcaption>") == FACES
    assert made(tmp_path / "out")["face-1.png"] == made(world / "whole")["face-1.png"]
    with pytest.raises(ValueError, match="keep_posterior_mean with whole: of aligned faces only"):
        job(world / "lq", tmp_path / "whole", world / "model", whole=True, keep_posterior_mean=True)


def test_the_source_is_the_posterior_mean_through_the_autoencoder(
    world: Path, tmp_path: Path
) -> None:
    """The second choice of Sec. 3.2, D(E(posterior mean)), without the noise of the source."""
    model = load_bundle(world / "model")
    restore(world / "lq", tmp_path / "out", world / "model", method="source")
    lq = torch.from_numpy(np.asarray(Image.open(world / "lq" / "face-1.png")).copy())
    mean = model.restorer.posterior_mean(uint8_to_unit(lq.permute(2, 0, 1)[None]))
    expected = model.restorer.image(model.restorer.posterior(mean).mode())

    found = np.asarray(Image.open(tmp_path / "out" / "face-1.png")).astype(int)
    off = unit_to_uint8(expected)[0].permute(1, 2, 0).numpy() - found
    assert abs(off).max() <= 1


def as_batches(lq: Path, _: Path) -> tuple[Any, dict[str, Any]]:
    """Ask for eight faces in a pass of the networks."""
    return lq, {"batch": 8}


def as_files(lq: Path, _: Path) -> tuple[Any, dict[str, Any]]:
    """Give every picture alone, the last first."""
    files = sorted((path for path in lq.rglob("*.png")), reverse=True)
    return tuple(f"more={p}" if p.parent.name == "more" else str(p) for p in files), {}


def as_archive(lq: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Pack the pictures into a tar."""
    with tarfile.open(folder / "lq.tar", "w") as tar:
        for path in sorted(lq.rglob("*.png"), reverse=True):
            tar.add(path, path.relative_to(lq).as_posix())
    return folder / "lq.tar", {}


def as_large_and_more(lq: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Give two more pictures beside them."""
    write_faces(folder / "others", 2)
    return (lq, f"others={folder / 'others'}"), {}


@pytest.mark.parametrize("way", [as_batches, as_files, as_archive, as_large_and_more])
def test_a_picture_depends_on_itself_alone(world: Path, tmp_path: Path, way: Any) -> None:
    """Batch 1 and 8, alone and in a folder, in any order, in an archive, among others."""
    given, fields = way(world / "lq", tmp_path)
    restore(given, tmp_path / "out", world / "model", **fields)
    found = pictures(tmp_path / "out")

    for key in KEYS:
        assert found[f"{key}.png"] == pictures(world / "whole")[f"{key}.png"]


def test_the_job_keeps_no_network_beside_its_workers(world: Path, tmp_path: Path) -> None:
    """What it loads to check the model is let go: 1 GB of the published size."""

    def alive() -> int:
        gc.collect()
        return sum(type(found) in (LooUFormer, SimVAE, SwinIR) for found in gc.get_objects())

    before = alive()
    restoration = Restoration(job(world / "lq", tmp_path / "out", world / "model"))

    assert alive() == before
    assert restoration.bundle.digest == restoration.settings["model"]


def test_a_run_that_was_killed_goes_on(world: Path, tmp_path: Path) -> None:
    """What is finished is left alone, and at the end all is as in an unbroken run."""
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        restore(world / "lq", output, world / "model", Stopping(2))
    done = {name: (output / name).stat().st_mtime_ns for name in pictures(output)}
    assert len(done) == 2 * 3  # the third unit is written, and was not noted as done

    engine = restore(world / "lq", output, world / "model")
    assert engine.count("restore") == FACES - 2
    after = {name: (output / name).stat().st_mtime_ns for name in done}
    assert sum(after[name] == done[name] for name in done) == 4
    assert {n: d for n, d in made(output).items() if n != "report.html"} == {
        n: d for n, d in made(world / "whole").items() if n != "report.html"
    }


def test_a_finished_job_does_nothing_again(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so."""
    output = shutil.copytree(world / "whole", tmp_path / "out")
    engine = restore(world / "lq", output, world / "model")

    assert engine.units == []
    assert "all is restored already" in capsys.readouterr().out


def test_only_what_is_new_changed_or_gone_is_restored(world: Path, tmp_path: Path) -> None:
    """More inputs add; a changed file is restored anew, and so is a picture that was deleted."""
    lq = shutil.copytree(world / "lq", tmp_path / "lq")
    output = shutil.copytree(world / "whole", tmp_path / "out")
    before = pictures(output)
    picture(40, SIDE, SIDE).save(lq / "new.png")
    picture(41, SIDE, SIDE).save(lq / "face-0.png")
    (output / "face-3.png").unlink()
    engine = restore(lq, output, world / "model")
    after = pictures(output)

    assert {image["key"] for _, unit in engine.units for image in unit["images"]} == {
        *("new", "face-0", "face-3"),
    }
    assert after.keys() - before.keys() == {"new.png", "new.json"}
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"face-0.png", "face-0.json"}


def test_pictures_that_are_given_no_more_stay(world: Path, tmp_path: Path) -> None:
    """In the folder and in its table; another run of some pictures is a run of these."""
    output = shutil.copytree(world / "whole", tmp_path / "out")
    write_faces(tmp_path / "others", 1)
    restore(f"late={tmp_path / 'others'}", output, world / "model")

    assert [*rows(output)] == ["face-0", "face-1", "face-3", "face-4", "late/face-0", "more/face-2"]
    assert pictures(world / "whole").items() <= pictures(output).items()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": 3}, "steps"),
        ({"strength": 0.5}, "strength"),
        ({"seed": 1}, "seed"),
        ({"samples": 2}, "samples"),
        ({"solver": "heun"}, "solver"),
        ({"sigma_s": 0.2}, "sigma_s"),
        ({"method": "posterior-mean"}, "method"),
        ({"model": "other"}, "model"),
        ({"whole": True}, "whole"),
    ],
)
def test_other_settings_are_refused_by_name(
    world: Path, tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    """And nothing in the folder changes."""
    output = shutil.copytree(world / "whole", tmp_path / "out")
    model = world / fields.pop("model", "model")
    with pytest.raises(UsageError, match=rf"another configuration.*\b{named}\b.*--overwrite"):
        restore(world / "lq", output, model, **fields)

    assert made(output) == made(world / "whole")


def test_overwriting_removes_what_the_old_configuration_made(world: Path, tmp_path: Path) -> None:
    """Also what a killed worker wrote, of which no result was kept; files of others stay."""
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        restore(world / "lq", output, world / "model", Stopping(2), samples=2)
    assert len(list(output.rglob("*.sample-1.png"))) == 3
    (output / "notes.txt").write_text("mine")
    restore(world / "lq", output, world / "model", overwrite=True)

    assert pictures(output) == pictures(world / "whole")
    assert (output / "notes.txt").read_text() == "mine"


def test_overwriting_that_was_killed_goes_on(world: Path, tmp_path: Path) -> None:
    """The same command does not start over; a third time it does."""
    output = shutil.copytree(world / "whole", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        restore(world / "lq", output, world / "other", Stopping(2), overwrite=True)
    engine = restore(world / "lq", output, world / "other", overwrite=True)
    assert engine.count("restore") == FACES - 2
    assert pictures(output).keys() == pictures(world / "whole").keys()

    engine = restore(world / "lq", output, world / "other", overwrite=True)
    assert engine.count("restore") == FACES


def test_overwriting_with_a_wrong_input_removes_nothing(world: Path, tmp_path: Path) -> None:
    """The inputs are looked at before anything is discarded."""
    output = shutil.copytree(world / "whole", tmp_path / "out")
    with pytest.raises(UsageError, match="no such file or folder"):
        restore(tmp_path / "typo", output, world / "other", overwrite=True)

    assert made(output) == made(world / "whole")


def test_two_jobs_in_one_folder_are_refused(world: Path, tmp_path: Path) -> None:
    """The second says who holds it."""
    output = shutil.copytree(world / "whole", tmp_path / "out")
    with (
        storage.exclusive(output / ".restore"),
        pytest.raises(UserError, match="another process"),
    ):
        restore(world / "lq", output, world / "model")


def test_restored_pictures_are_no_input(world: Path, tmp_path: Path) -> None:
    """An output inside an input, there by its own name or by a link, is not restored again."""
    lq = shutil.copytree(world / "lq", tmp_path / "lq")
    restore(lq, lq / "restored", world / "model")
    (tmp_path / "link").symlink_to(lq)
    engine = restore(tmp_path / "link", lq / "restored", world / "model")

    assert engine.units == []
    assert not (lq / "restored" / "restored").exists()
    with pytest.raises(UsageError, match="no picture but what this job has restored"):
        restore(lq / "restored", lq / "restored", world / "model")


def test_a_model_that_was_replaced_ends_the_job(world: Path, tmp_path: Path) -> None:
    """No worker restores with another model than the job began with; mended, the job goes on."""
    model = shutil.copytree(world / "model", tmp_path / "model")
    begun = Restoration(job(world / "lq", tmp_path / "out", model))
    shutil.rmtree(model)
    shutil.copytree(world / "other", model)
    with pytest.raises(UserError, match=r"was replaced while the job ran.*bring that back"):
        begun.run(InProcess())
    shutil.rmtree(model)
    shutil.copytree(world / "model", model)
    restore(world / "lq", tmp_path / "out", model)

    assert pictures(tmp_path / "out") == pictures(world / "whole")


@pytest.mark.parametrize(
    ("device", "left", "workers", "size"),
    [
        ("cpu", 1, 8, 1),
        ("cpu", 40, 2, 5),
        ("cpu", 10_000, 8, 8),
        ("cuda", 3, 1, 8),
        ("cuda", 200, 1, 50),
        ("cuda", 70_000, 8, 64),
    ],
)
def test_units_keep_all_workers_busy(device: Any, left: int, workers: int, size: int) -> None:
    """Few pictures are shared among all workers; on a GPU a unit is at least a pass."""
    assert unit_size(left, workers, RestoreRule(device=device)) == size


def test_the_name_of_a_unit_fits_into_a_file_s() -> None:
    """However long the keys are."""
    refs = [
        ImageRef(key="k" * 900 + str(n), origin="a", file="f", path="/f", size=1, stamp=1)
        for n in range(5)
    ]
    names = [unit["name"] for unit in units(refs, 2)]

    assert len(set(names)) == 3
    assert all(len(os.fsencode(name)) < 100 for name in names)


def test_places_that_cannot_be_read_are_failures(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive in a folder in which nothing is found may have held pictures."""
    lq = shutil.copytree(world / "lq", tmp_path / "lq")
    (lq / "broken.zip").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(BudgetExceeded, match="1 places of the inputs could not be read"):
        restore(lq, tmp_path / "out", world / "model")

    assert "unreadable_archive\tbroken.zip of lq\t" in capsys.readouterr().err
    assert pictures(tmp_path / "out") == pictures(world / "whole")


def test_a_dry_run_counts_what_is_left_and_writes_nothing(world: Path, tmp_path: Path) -> None:
    """Of a new output, of one that is half done, and of one that would be refused."""
    lq = shutil.copytree(world / "lq", tmp_path / "lq")
    picture(40, SIDE, SIDE).save(lq / "new.png")
    said = estimate(job(lq, tmp_path / "out", world / "model"))
    assert "6 pictures, 6 of them to restore, by latent-pmrf at 32 x 32 pixels" in said
    assert not (tmp_path / "out").exists()

    before = {path: path.stat().st_mtime_ns for path in (world / "whole").rglob("*")}
    assert "6 pictures, 1 of them" in estimate(job(lq, world / "whole", world / "model"))
    with pytest.raises(UsageError, match="steps: "):
        estimate(job(lq, world / "whole", world / "model", steps=4))
    assert {path: path.stat().st_mtime_ns for path in (world / "whole").rglob("*")} == before

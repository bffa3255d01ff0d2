"""The curation job: what it makes, and what it makes again."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from mlflow import MlflowClient

from datasets import shards
from datasets.decoding import decode
from datasets.verify import problems
from infra import storage
from infra.errors import UsageError, UserError
from pipelines.curate import kept
from pipelines.curate.config import PRESETS
from pipelines.curate.job import Curation
from tests.conftest import Pictures, picture
from tests.support.curation_jobs import InProcess, config, published, run

pytest_plugins = ["tests.support.tracking_stores"]
pytestmark = pytest.mark.usefixtures("room_on_disk")  # with little, no PNGs are kept


def test_a_set_verifies_and_holds_the_pixels_of_its_sources(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Every sample's PNG is the crop that its JSON names, read by plain webdataset."""
    source = pictures(5)
    run(source, tmp_path / "set")

    assert list(problems(tmp_path / "set")) == []
    urls = sorted(str(path) for path in (tmp_path / "set").glob("*.tar"))
    count = 0
    for sample in wds.WebDataset(urls, shardshuffle=False):
        label = json.loads(sample["json"])
        x, y, w, h = label["crop"]
        image = decode((source / f"{label['source']}.png").read_bytes())
        assert (decode(sample["png"]) == image[y : y + h, x : x + w]).all()
        count += 1
    manifest = shards.read_manifest(tmp_path / "set")
    assert manifest is not None
    assert count == manifest["totals"]["samples"] > 8


def test_rejected_candidates_keep_their_scores(pictures: Pictures, tmp_path: Path) -> None:
    """scores.parquet has a row for every candidate, and each has a place or a reason."""
    run(pictures(5), tmp_path / "set")
    rows = pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()

    assert any(row["drop_reason"] == "low_quality" for row in rows)
    for row in rows:
        assert (row["shard"] is None) == (row["drop_reason"] is not None)
        assert (row["quality"] > 60) == (row["drop_reason"] == "low_quality")


def test_the_same_input_gives_the_same_bytes_wherever_it_lies(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Two runs into two folders agree in every byte, the manifest's included."""
    source = pictures(6)
    run(source, tmp_path / "one")
    run(source, tmp_path / "two", workers=3)

    assert published(tmp_path / "one") == published(tmp_path / "two")


def test_a_finished_set_is_left_alone(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run does no unit of work and says so."""
    source = pictures(4)
    run(source, tmp_path / "set")
    before = published(tmp_path / "set")
    second = run(source, tmp_path / "set")

    assert second.units == []
    assert "nothing to do" in capsys.readouterr().out
    assert before == published(tmp_path / "set")


def test_another_threshold_cuts_again_without_scoring(pictures: Pictures, tmp_path: Path) -> None:
    """The re-cut set is the one that a fresh run at that threshold would have made."""
    source = pictures(6)
    run(source, tmp_path / "set")
    again = run(source, tmp_path / "set", threshold=45.0)
    run(source, tmp_path / "fresh", threshold=45.0)

    assert again.count("score") == 0
    assert again.count("pack") > 0
    assert published(tmp_path / "set") == published(tmp_path / "fresh")
    assert list(problems(tmp_path / "set")) == []


def test_new_images_are_scored_and_old_scores_stay(pictures: Pictures, tmp_path: Path) -> None:
    """Adding to the input costs what was added, and gives what a fresh run gives."""
    source = pictures(4)
    run(source, tmp_path / "set")
    picture(77, 200, 150).save(source / "new.png")
    again = run(source, tmp_path / "set")
    run(source, tmp_path / "fresh")

    scored = [ref["key"] for stage, unit in again.units if stage == "score" for ref in unit["refs"]]
    assert scored == ["new"]
    assert published(tmp_path / "set") == published(tmp_path / "fresh")


def test_first_takes_the_first_by_sorted_name(pictures: Pictures, tmp_path: Path) -> None:
    """The paper's first 10,000 of FFHQ, in small."""
    run(pictures(6), tmp_path / "set", first=2)
    rows = pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()

    assert {row["source"] for row in rows} == {"more/photo-02", "more/photo-05"}


def test_the_ffhq_recipe_resizes_and_drops_the_small(pictures: Pictures, tmp_path: Path) -> None:
    """One sample an image, under its own name; nothing is enlarged, nothing is scored away."""
    source = pictures(3, width=128, height=128)
    picture(9, 63, 200).save(source / "narrow.png")
    ffhq = PRESETS["ffhq"]
    run(source, tmp_path / "set", mode=ffhq.crop.mode, scorer=ffhq.scorer.name, threshold=None)
    rows = {r["key"]: r for r in pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()}

    assert sorted(rows) == ["more/photo-02", "narrow", "photo-00", "photo-01"]
    assert [key for key, row in rows.items() if row["drop_reason"]] == ["narrow"]
    assert rows["narrow"]["drop_reason"] == "too_small"


class Meddling(InProcess):
    """Does something between scoring and packing."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        super().__init__()
        self.meddle = meddle

    def run(self, name: str, *rest: Any) -> Iterator[dict[str, Any]]:
        """Carry the units out."""
        yield from super().run(name, *rest)
        if name == "score":
            self.meddle()


def test_a_source_that_changed_after_scoring_stops_the_packing(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Pixels never differ from what was scored; the next run scores the image anew."""
    source = pictures(3)

    def change() -> None:
        picture(99, 160, 128).save(source / "photo-00.png")
        for folder in (tmp_path / "set" / ".curate").glob("kept-*"):
            shutil.rmtree(folder)

    with pytest.raises(UserError, match=r"photo-00.*changed since it was scored|has .* bytes"):
        Curation(config(source, tmp_path / "set")).run(Meddling(change))
    run(source, tmp_path / "set")
    run(source, tmp_path / "fresh")

    assert published(tmp_path / "set") == published(tmp_path / "fresh")


def remove_pngs(path: Path) -> None:
    """Lose the PNGs and keep their table."""
    path.unlink()


def truncate_pngs(path: Path) -> None:
    """Lose the last of them."""
    path.write_bytes(path.read_bytes()[:-7])


def zero_pngs(path: Path) -> None:
    """Leave what a power cut leaves of data that was not flushed."""
    path.write_bytes(bytes(path.stat().st_size))


def cut_table(path: Path) -> None:
    """Stop in the middle of the table."""
    table = path.with_suffix(".parquet")
    table.write_bytes(table.read_bytes()[:-5])


@pytest.mark.parametrize("damage", [remove_pngs, truncate_pngs, zero_pngs, cut_table])
def test_pngs_that_were_made_in_scoring_are_made_again_where_they_are_damaged(
    pictures: Pictures, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """They save the second decoding, and change no byte; published, they are removed."""
    source, state = pictures(3), tmp_path / "set" / ".curate"
    whole = run(source, tmp_path / "whole", samples_per_shard=64)
    assert "decode" not in whole.steps("pack")

    def damage_one() -> None:
        damage(sorted(state.glob("kept-*/*.pngs"))[0])

    damaged = Meddling(damage_one)
    Curation(config(source, tmp_path / "set", samples_per_shard=64)).run(damaged)

    assert "decode" in damaged.steps("pack")
    assert published(tmp_path / "set") == published(tmp_path / "whole")
    assert not list(state.glob("kept-*"))


@pytest.mark.parametrize("fault", ["nearly full", "no folder"])
def test_without_room_for_pngs_nothing_is_lost(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """They are made in packing then."""
    source = pictures(2)
    run(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if fault == "nearly full":
            usage = shutil.disk_usage(tmp_path)._replace(free=1)
            patch.setattr(shutil, "disk_usage", lambda _: usage)
        else:
            (tmp_path / "file").touch()
            nowhere = kept.Keeping(str(tmp_path / "file"), None, higher_is_better=True)
            patch.setattr(Curation, "keeping", lambda _: nowhere)
        engine = run(source, tmp_path / "set")

    assert "decode" in engine.steps("pack")
    assert published(tmp_path / "set") == published(tmp_path / "whole")


def test_a_disk_that_is_full_while_pngs_are_written_is_no_error(tmp_path: Path) -> None:
    """The device of that name refuses every byte."""
    (tmp_path / "unit.pngs").symlink_to("/dev/full")
    patch = np.asarray(picture(1, 64, 64))
    row = {"key": "a", "source_sha256": "s", "quality": 1.0, "drop_reason": None}
    keeping = kept.Keeping(str(tmp_path), None, higher_is_better=True)
    with kept.KeptUnit(keeping, "unit") as unit:
        for _ in range(3):
            unit.add(row, patch)

    assert not list(tmp_path.glob("*.parquet"))


def test_the_run_goes_to_mlflow(pictures: Pictures, tmp_path: Path, store: MlflowClient) -> None:
    """One finished run holds the settings, the counts, the set's digest, the page and manifest."""
    run(pictures(3), tmp_path / "set", track=True)
    (experiment,) = store.search_experiments(filter_string="name = 'latent-pmrf/curate'")
    (found,) = store.search_runs([experiment.experiment_id])
    manifest = shards.read_manifest(tmp_path / "set")

    assert manifest is not None
    assert found.info.status == "FINISHED"
    assert found.data.params["scorer.name"] == "brisque"
    assert found.data.metrics["samples"] == manifest["totals"]["samples"]
    (data,) = found.inputs.dataset_inputs
    assert storage.sha256(tmp_path / "set" / shards.MANIFEST).startswith(data.dataset.digest)
    paths = {artifact.path for artifact in store.list_artifacts(found.info.run_id)}
    assert {"report.html", "manifest.json"} <= paths


def test_a_scorer_that_is_not_here_is_an_error(tmp_path: Path) -> None:
    """Nothing takes its place."""
    with pytest.raises(UsageError, match="nonesuch"):
        run(tmp_path, tmp_path / "set", scorer="nonesuch")

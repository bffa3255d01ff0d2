"""The curation job: what it makes, what it makes again, what it refuses."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset as wds

from datasets import shards
from datasets.decoding import decode
from datasets.verify import problems
from infra import storage
from infra.errors import BudgetExceeded, UsageError, UserError
from pipelines import curate
from pipelines.curate import PRESETS, CurateConfig
from pipelines.curation import Curation
from pipelines.stage import Resources, StageTime, Worker, attempt
from tests.conftest import Pictures, picture


class InProcess:
    """An engine without Ray: the same workers, one after the other, in this process."""

    def __init__(self) -> None:
        self.times: list[StageTime] = []
        self.units: list[tuple[str, dict[str, Any]]] = []

    def run(
        self,
        name: str,
        units: Sequence[dict[str, Any]],
        worker: Callable[..., Worker],
        arguments: Sequence[Any],
        total: int,
        resources: Resources | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Do every unit, backwards: no result may depend on the order."""
        self.times.append(StageTime(name))
        work = worker(*arguments) if units else None
        for unit in reversed(units):
            assert work is not None
            self.units.append((name, unit))
            result = attempt(work, json.loads(json.dumps(unit)))
            if "failure" in result:
                raise UserError(result["failure"])
            yield result

    def gpus(self) -> int:
        """Return none."""
        return 0

    def count(self, name: str) -> int:
        """Return how many units of a stage were done."""
        return sum(stage == name for stage, _ in self.units)


def config(source: Path, output: Path, **fields: Any) -> CurateConfig:
    """Return a small job: 64-pixel patches, four samples a shard."""
    defaults: dict[str, Any] = {
        "input": (str(source),),
        "output": str(output),
        "size": 64,
        "stride": 48,
        "scorer": "brisque",
        "threshold": 60.0,
        "samples_per_shard": 4,
        "val_fraction": 0.3,
        "track": False,
    }
    return CurateConfig(**defaults | fields)


def run(source: Path, output: Path, **fields: Any) -> InProcess:
    """Curate in this process."""
    engine = InProcess()
    Curation(config(source, output, **fields)).run(engine)
    return engine


def published(folder: Path) -> dict[str, bytes]:
    """Return the bytes of everything that makes the set: shards, tables, manifest."""
    manifest = shards.read_manifest(folder)
    assert manifest is not None
    names = [entry["name"] for entry in manifest["shards"]] + list(manifest["files"])
    return {name: (folder / name).read_bytes() for name in [*names, shards.MANIFEST]}


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
    run(source, tmp_path / "set", mode=ffhq.mode, scorer=ffhq.scorer, threshold=None)
    rows = {r["key"]: r for r in pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()}

    assert sorted(rows) == ["more/photo-02", "narrow", "photo-00", "photo-01"]
    assert [key for key, row in rows.items() if row["drop_reason"]] == ["narrow"]
    assert rows["narrow"]["drop_reason"] == "too_small"


def bad_files(source: Path) -> dict[str, str]:
    """Put one file of every kind of damage beside the pictures; returns {key: reason}."""
    good = (source / "photo-00.png").read_bytes()
    (source / "cut.png").write_bytes(good[: len(good) // 2])
    (source / "nothing.jpg").write_bytes(b"")
    (source / "text.jpg").write_text("<html>404</html>")
    (source / "misnamed.jpg").write_bytes(good)
    (source / ("x" * 95 + ".png")).write_bytes(good)
    return {
        "cut": "truncated",
        "nothing": "empty_file",
        "text": "not_an_image",
        "x" * 95: "key_too_long",
    }


def test_broken_images_are_recorded_and_the_run_goes_on(pictures: Pictures, tmp_path: Path) -> None:
    """Each has its reason; a wrong extension is no damage; past the budget the exit code is 3."""
    source = pictures(3)
    expected = bad_files(source)
    with pytest.raises(BudgetExceeded, match="4 of 8 images are broken") as caught:
        run(source, tmp_path / "set")
    rows = pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()
    found = {row["key"]: row["drop_reason"] for row in rows if row["index"] == 0}

    assert caught.value.exit_code == 3
    assert expected == found
    assert any(row["source"] == "misnamed" for row in rows)
    assert list(problems(tmp_path / "set")) == []

    run(source, tmp_path / "set", max_bad=0.5)


def test_a_bomb_is_dropped_undecoded(pictures: Pictures, tmp_path: Path) -> None:
    """The header's word is enough."""
    run(pictures(2), tmp_path / "set", max_pixels=160 * 128, max_bad=1)
    rows = pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()

    assert {r["source"] for r in rows if r["drop_reason"] == "too_many_pixels"} == {"photo-01"}


def test_another_configuration_is_refused_by_field_and_replaced_on_demand(
    pictures: Pictures, tmp_path: Path
) -> None:
    """What made the candidates cannot change under a set; --overwrite starts over."""
    source = pictures(4)
    run(source, tmp_path / "set")
    before = published(tmp_path / "set")
    with pytest.raises(UsageError, match=r"size: 64 -> 32.*stride: 48 -> 24.*--overwrite"):
        run(source, tmp_path / "set", size=32, stride=24)
    assert before == published(tmp_path / "set")
    run(source, tmp_path / "set", size=32, stride=24, overwrite=True)
    run(source, tmp_path / "fresh", size=32, stride=24)

    assert published(tmp_path / "set") == published(tmp_path / "fresh")


def test_a_folder_that_holds_something_else_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    """Nobody's files are mixed with a set."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("chapter 1")

    with pytest.raises(UsageError, match="not empty and not a curated set"):
        run(pictures(1), tmp_path / "home")


def test_an_output_that_is_a_file_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    """The message names the path."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(UserError, match="file"):
        run(pictures(1), tmp_path / "file" / "set")


def test_two_jobs_do_not_share_a_folder(pictures: Pictures, tmp_path: Path) -> None:
    """The second is told to wait."""
    with (
        storage.exclusive(tmp_path / "set" / ".curate"),
        pytest.raises(UserError, match="being written by another process"),
    ):
        run(pictures(1), tmp_path / "set")


def test_keeping_nothing_is_an_error_that_says_why(pictures: Pictures, tmp_path: Path) -> None:
    """An empty set helps nobody; the reasons and the remedy are named."""
    with pytest.raises(UserError, match=r"no candidate was kept.*low_quality.*--threshold"):
        run(pictures(3), tmp_path / "set", threshold=-1000.0)


def test_a_source_that_changed_after_scoring_stops_the_packing(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Pixels never differ from what was scored; the next run scores the image anew."""
    source = pictures(3)

    class Meddling(InProcess):
        def run(self, name: str, *rest: Any) -> Iterator[dict[str, Any]]:
            if name == "pack":
                picture(99, 160, 128).save(source / "photo-00.png")
            yield from super().run(name, *rest)

    with pytest.raises(UserError, match=r"photo-00.*changed since it was scored|has .* bytes"):
        Curation(config(source, tmp_path / "set")).run(Meddling())
    run(source, tmp_path / "set")
    run(source, tmp_path / "fresh")

    assert published(tmp_path / "set") == published(tmp_path / "fresh")


def test_scores_travel_in_the_authors_file(pictures: Pictures, tmp_path: Path) -> None:
    """Exported and imported again, the same scores keep the same patches."""
    source = pictures(4)
    run(source, tmp_path / "set")
    exported = tmp_path / "raw_quality_score.json"
    curate.main(["export-scores", str(tmp_path / "set"), str(exported)])
    scores = json.loads(exported.read_text())
    exported.write_text(json.dumps({key: 5 - score / 40 for key, score in scores.items()}))
    run(source, tmp_path / "imported", scorer=str(exported), threshold=3.5)

    first = pq.read_table(tmp_path / "set" / "scores.parquet")
    second = pq.read_table(tmp_path / "imported" / "scores.parquet")
    assert first["key"].equals(second["key"])
    assert first["shard"].equals(second["shard"])


def test_the_run_goes_to_mlflow(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One finished run holds the settings, the counts, the set's digest, the page and manifest."""
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run(pictures(3), tmp_path / "set", track=True)
    client = MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'latent-pmrf/curate'")
    (found,) = client.search_runs([experiment.experiment_id])
    manifest = shards.read_manifest(tmp_path / "set")

    assert manifest is not None
    assert found.info.status == "FINISHED"
    assert found.data.params["scorer.name"] == "brisque"
    assert found.data.metrics["samples"] == manifest["totals"]["samples"]
    (data,) = found.inputs.dataset_inputs
    assert storage.sha256(tmp_path / "set" / shards.MANIFEST).startswith(data.dataset.digest)
    paths = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert {"report.html", "manifest.json"} <= paths


def test_a_scorer_that_is_not_here_is_an_error(tmp_path: Path) -> None:
    """Nothing takes its place."""
    with pytest.raises(UsageError, match="nonesuch"):
        run(tmp_path, tmp_path / "set", scorer="nonesuch")


def test_no_write_that_fails_leaves_a_wrong_set(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail the n-th write, sync or rename, for every n: the next run gives the same bytes."""
    source = pictures(2)
    run(source, tmp_path / "undisturbed", samples_per_shard=8)
    expected = published(tmp_path / "undisturbed")
    failures = 0
    for n in range(1000):
        output = tmp_path / f"set{n}"
        disturbed = _FullDisk(n)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "os", disturbed)
            try:
                run(source, output, samples_per_shard=8)
                break
            except (UserError, OSError):
                failures += 1
        left = [path for path in output.rglob("*") if path.name.endswith(".partial")]
        assert left == []
        manifest = shards.read_manifest(output)
        assert manifest is None or published(output) == expected
        run(source, output, samples_per_shard=8)
        assert published(output) == expected
        shutil.rmtree(output)

    assert failures > 30


class _FullDisk:
    """Stands for the module `os`: the n-th call that changes the disk finds it full."""

    def __init__(self, left: int) -> None:
        import os

        self._os = os
        self._left = left

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._os, name)
        return self._guarded(real) if name in ("write", "fsync", "replace") else real

    def _guarded(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "nonesuch"], "nonesuch"),
        (["--preset", "lsdir", "--input", "x"], "no --output"),
        (["--output", "x", "--val-fraction", "1.5"], "val_fraction 1.5"),
        (["--output", "x", "--max-bad", "7"], "max_bad"),
        (["--config", "/nonexistent.json"], "nonexistent"),
        (["verify"], "usage"),
        (["export-scores", "x"], "usage"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is named, with exit code 2, by us or by the command-line library."""
    with pytest.raises((UsageError, SystemExit)) as caught:
        curate.main(arguments)
    error = caught.value

    assert (error.exit_code if isinstance(error, UsageError) else error.code) == 2
    assert named in str(error) + capsys.readouterr().err


def test_a_saved_configuration_is_the_run(pictures: Pictures, tmp_path: Path) -> None:
    """--config of a finished set's config.json has nothing to do."""
    source = pictures(3)
    run(source, tmp_path / "set")
    saved = tmp_path / "set" / "config.json"

    assert curate.main(["--config", str(saved)]) == 0

    values = json.loads(saved.read_text())
    (tmp_path / "odd.json").write_text(json.dumps(values | {"treshold": 3}))
    with pytest.raises(UsageError, match="treshold"):
        curate.main(["--config", str(tmp_path / "odd.json")])


def test_the_dry_run_writes_nothing(
    pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says images, patches, bytes and minutes."""
    source = pictures(6)
    arguments = ["--input", str(source), "--output", str(tmp_path / "set"), "--dry-run"]
    curate.main([*arguments, "--size", "64", "--stride", "48", "--scorer", "brisque"])
    printed = capsys.readouterr().out

    assert not (tmp_path / "set").exists()
    for word in ("6 images", "patches", "kept", "GB", "minutes"):
        assert word in printed

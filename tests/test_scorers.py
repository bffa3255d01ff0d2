"""Scorers behind the contract: streaming, refusing, and Q-Align inside the curation."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets import shards
from datasets.decoding import Pixels, decode
from datasets.sources import list_images
from datasets.verify import problems
from infra.errors import UsageError, UserError
from infra.paths import path_of
from models.qalign.scorer import QAlign
from pipelines.curate import scoring
from pipelines.curate.config import CropRule
from pipelines.jobs.scorer_choice import ScorerChoice
from pipelines.jobs.scorers import describe, load
from pipelines.score import __main__ as score
from tests.conftest import Pictures
from tests.support.curation_jobs import published, run
from tests.support.faulty_proxy import FaultyProxy
from tests.support.qalign_checkpoint import write_checkpoint
from tests.test_s3_inputs import uploaded

RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny Q-Align with random weights in the published layout: its scores are noise."""
    folder = tmp_path_factory.mktemp("one-align")
    write_checkpoint(folder)
    return folder


def qalign(checkpoint: Path, **fields: object) -> ScorerChoice:
    """Choose the tiny Q-Align."""
    return ScorerChoice(name="qalign", weights=str(checkpoint), **fields)  # type: ignore[arg-type]


def test_describing_and_scoring_agree_on_what_is_loaded(checkpoint: Path) -> None:
    """The driver's identity, taken without loading, is the loaded model's."""
    info = describe(qalign(checkpoint), "cpu")
    model = QAlign.load(checkpoint)

    assert info.digest == model.digest
    assert (info.scale, info.default_threshold) == ((1.0, 5.0), 3.5)
    assert info.settings["dtype"] == model.identity["dtype"]
    other = describe(qalign(checkpoint, prompt="aesthetics"), "cpu")
    assert other.identity() != info.identity()


def test_weights_in_a_bucket_are_those_of_the_folder(
    checkpoint: Path, s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their identity, which scores carry; they are copied to this machine once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uri = uploaded(checkpoint, path_of("s3://tests/scorers"))
    there = ScorerChoice(name="qalign", weights=uri)
    for _ in range(2):
        s3_proxy.seen.clear()
        found = describe(there, "cpu").identity()

    assert found == describe(qalign(checkpoint), "cpu").identity()
    assert s3_proxy.count("GET", f"{checkpoint.name}/") == 0


@pytest.mark.parametrize("name", ["brisque", "none", "qalign"])
def test_scorers_stream(checkpoint: Path, name: str) -> None:
    """Results come in order, and a scorer never runs far ahead of what it has answered."""
    choice = qalign(checkpoint, batch=2) if name == "qalign" else ScorerChoice(name=name)
    scorer = load(choice, "cpu")
    pulled = 0

    def patches() -> Iterator[list[Pixels]]:
        nonlocal pulled
        for _ in range(20):
            pulled += 2
            yield list(RNG.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8))

    answered = 0
    for quality in scorer.score(patches()):
        answered += 1
        assert math.isnan(quality.value) == (name == "none")
        assert pulled - answered < 12

    assert answered == 40


def test_qalign_curates(checkpoint: Path, pictures: Pictures, tmp_path: Path) -> None:
    """Scores are the model's own, their logits are kept, and the set names model, prompt, dtype."""
    source = pictures(4)
    fields = {"scorer": "qalign", "scorer_weights": str(checkpoint), "scorer_gpus": 0}
    run(source, tmp_path / "set", **fields, threshold=2.0)
    table = pq.read_table(tmp_path / "set" / "scores.parquet")
    rows = table.to_pylist()
    manifest = shards.read_manifest(tmp_path / "set")

    assert manifest is not None
    assert manifest["scorer"]["prompt"] == "quality"
    assert manifest["scorer"]["dtype"] == "float32"
    assert manifest["scorer"]["model"] == checkpoint.name
    record = json.loads(table.schema.metadata[b"scorer"])
    assert record.keys() == {"name", "digest", "model", "prompt", "dtype", "batch"}
    assert list(problems(tmp_path / "set")) == []
    model = QAlign.load(checkpoint)
    row = rows[len(rows) // 2]
    image = decode((source / f"{row['source']}.png").read_bytes())
    patch = image[row["y"] : row["y"] + 64, row["x"] : row["x"] + 64]
    (expected,) = model.score([patch])
    assert row["quality"] == pytest.approx(expected.value, abs=1e-4)
    assert json.loads(row["detail"])["logits"] == pytest.approx(expected.logits, abs=1e-4)


@pytest.mark.parametrize("largest", [1, 64])
def test_a_score_does_not_depend_on_what_was_scored_before(
    checkpoint: Path,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    largest: int,
) -> None:
    """A trial with --limit, more inputs, other units: the same bits as of a run of everything."""
    source = pictures(5)
    fields = {"scorer": "qalign", "scorer_weights": str(checkpoint), "scorer_gpus": 0}
    fields |= {"scorer_batch": 4, "threshold": 1.0}  # of 9 or 12 patches an image
    monkeypatch.setattr(scoring, "UNITS", 1)
    run(source, tmp_path / "fresh", **fields)
    monkeypatch.setattr(scoring, "LARGEST_UNIT", largest)
    run(source, tmp_path / "set", **fields, limit=2)
    run(source, tmp_path / "set", **fields)

    assert published(tmp_path / "set") == published(tmp_path / "fresh")


def test_another_batch_size_is_another_scorer(
    checkpoint: Path, pictures: Pictures, tmp_path: Path
) -> None:
    """The bits of a score may depend on it, so scores of two sizes are never mixed."""
    source = pictures(1)
    fields = {"scorer": "qalign", "scorer_weights": str(checkpoint), "scorer_gpus": 0}
    run(source, tmp_path / "set", **fields, threshold=1.0)

    with pytest.raises(UsageError, match="batch: '8' -> '2'"):
        run(source, tmp_path / "set", **fields, threshold=1.0, scorer_batch=2)


def test_weights_are_known_by_content_and_name_not_by_path(
    checkpoint: Path, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path to the same folder of weights is the same scorer."""
    source = pictures(1)
    fields = {"scorer": "qalign", "scorer_gpus": 0, "threshold": 1.0}
    run(source, tmp_path / "set", **fields, scorer_weights=str(checkpoint))
    monkeypatch.chdir(checkpoint.parent)
    again = run(source, tmp_path / "set", **fields, scorer_weights=f"./{checkpoint.name}")

    assert again.units == []


def test_another_prompt_is_another_set(
    checkpoint: Path, pictures: Pictures, tmp_path: Path
) -> None:
    """Scores of different questions are never mixed."""
    source = pictures(2)
    fields = {"scorer": "qalign", "scorer_weights": str(checkpoint), "scorer_gpus": 0}
    run(source, tmp_path / "set", **fields, threshold=1.0)

    with pytest.raises(UsageError, match="aesthetics"):
        run(source, tmp_path / "set", **fields, threshold=1.0, scorer_prompt="aesthetics")


def test_threads_that_decode_ahead_change_nothing(
    checkpoint: Path, pictures: Pictures, tmp_path: Path
) -> None:
    """A GPU worker's decoding threads keep the order of images and patches."""
    refs = list_images([str(pictures(7))], tmp_path).images
    rule = CropRule(mode="crop", size=64, stride=48)
    choice = ScorerChoice(name="brisque")
    alone = scoring.ScoreImages(rule, choice, "cpu", 10**8).candidates(refs)

    assert scoring.ScoreImages(rule, choice, "cpu", 10**8, 3).candidates(refs) == alone


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"name": "nonesuch"}, "choose brisque, qalign"),
        ({"name": "qalign", "weights": "/nonexistent"}, "nonexistent"),
        ({"name": "qalign", "prompt": "beauty"}, "beauty"),
    ],
)
def test_a_scorer_that_cannot_run_is_refused(choice: dict[str, str], named: str) -> None:
    """The message names what is missing; no other scorer steps in."""
    with pytest.raises(UsageError, match=named):
        describe(ScorerChoice(**choice), "cpu")  # type: ignore[arg-type]


def test_qalign_without_a_gpu_is_refused_unless_cpus_are_asked_for(
    checkpoint: Path, pictures: Pictures, tmp_path: Path
) -> None:
    """No device takes another's place."""
    fields = {"scorer": "qalign", "scorer_weights": str(checkpoint)}
    with pytest.raises(UsageError, match=r"0 in the Ray cluster.*--scorer-gpus 0"):
        run(pictures(1), tmp_path / "set", **fields, threshold=1.0)


def test_no_cuda_is_said_and_not_replaced(
    checkpoint: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool's default device is CUDA; without one it names the option for the CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        score.main(["--images", str(pictures(1)), "--scorer-weights", str(checkpoint)])


def test_the_score_tool_scores_by_qalign(
    checkpoint: Path, pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line an image; the table has all that a score depends on, and the logits."""
    source, table = pictures(3), tmp_path / "scores.csv"
    arguments = ["--images", str(source), "--scorer-weights", str(checkpoint), "--device", "cpu"]

    assert score.main([*arguments, "--output", str(table)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["key"] for row in rows} == {"photo-00", "photo-01", "more/photo-02"}
    assert len(json.loads(rows[0]["detail"])["logits"]) == 5
    assert rows[0].keys() >= {"name", "digest", "model", "prompt", "dtype"}

"""Files of scores: exported, read back as what they are, refused as what they are not."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datasets.shards import read_manifest
from infra.config import pretty_json
from infra.errors import UsageError
from pipelines.curate import __main__ as curate
from pipelines.jobs.score_file import read_scores, write_scores
from pipelines.jobs.scorer_choice import ScorerChoice
from pipelines.jobs.scorers import describe
from tests.conftest import Pictures
from tests.support.curation_jobs import run

BRISQUE = {"name": "brisque", "digest": "d", "scale": (0.0, 100.0), "higher_is_better": False}
CROP = {"mode": "crop", "size": 64, "stride": 48}


def written(folder: Path, **changes: Any) -> Path:
    """Write a file of a score of BRISQUE with something changed; None takes a field away."""
    path = folder / "scores.json"
    write_scores(path, {"photo-00_s001": 1.0}, BRISQUE, CROP)
    values = json.loads(path.read_text()) | changes
    path.write_bytes(pretty_json({k: v for k, v in values.items() if v is not None}))
    return path


def test_exported_scores_of_brisque_keep_what_brisque_kept(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Lower is better when they are read back, and the set knows whose scores they are."""
    source, exported = pictures(4), tmp_path / "scores.json"
    run(source, tmp_path / "set", threshold=45.0)
    curate.main(["export-scores", str(tmp_path / "set"), str(exported)])
    run(source, tmp_path / "imported", scorer=str(exported), threshold=45.0)

    tables = [pq.read_table(tmp_path / name / "scores.parquet") for name in ("set", "imported")]
    for column in ("key", "quality", "drop_reason", "shard"):
        assert tables[0][column].equals(tables[1][column])
    assert "low_quality" in tables[0]["drop_reason"].to_pylist()
    manifests = [read_manifest(tmp_path / name) for name in ("set", "imported")]
    scorers = [manifest["scorer"] for manifest in manifests if manifest is not None]
    assert len(scorers[1].pop("file")) == 64
    assert scorers[0] == scorers[1]


def test_the_default_threshold_is_the_scorers(tmp_path: Path) -> None:
    """Not Q-Align's."""
    path = written(tmp_path)
    own = describe(ScorerChoice(name="brisque"), "cpu")

    assert describe(ScorerChoice(name=str(path)), "cpu").default_threshold == own.default_threshold


def test_the_authors_file_is_read_where_it_is_named_as_theirs(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Scores of Q-Align: 3.5 keeps, higher is better; what has no score is dropped as that."""
    source, path = pictures(1), tmp_path / "quality_score.json"
    path.write_text(json.dumps({"photo-00_s001": 3.4, "photo-00_s002": 3.5, "photo-00_s003": 4}))
    with pytest.raises(UsageError, match=rf"authors' .* --scorer authors:{path}"):
        run(source, tmp_path / "set", scorer=str(path), threshold=None)
    run(source, tmp_path / "set", scorer=f"authors:{path}", threshold=None)

    rows = pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()
    assert [row["drop_reason"] for row in rows[:4]] == ["low_quality", None, None, "not_in_scores"]
    manifest = read_manifest(tmp_path / "set")
    assert manifest is not None
    assert manifest["scorer"]["name"] == "qalign"
    theirs = tmp_path / "again.json"
    curate.main(["export-scores", str(tmp_path / "set"), f"authors:{theirs}"])
    assert json.loads(theirs.read_text()) == json.loads(path.read_text())


@pytest.mark.parametrize(
    "text", ["[1, 2]", '{"a": "good"}', '{"a": 46.2}', '{"a": NaN}', "not json"]
)
def test_what_is_not_the_authors_is_refused(tmp_path: Path, text: str) -> None:
    """A list, words for numbers, a score that Q-Align cannot give: BRISQUE's, say."""
    path = tmp_path / "quality_score.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"expected the authors' {key: score}.*from 1 to 5"):
        read_scores(f"authors:{path}")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"higher_is_better": True}, "higher_is_better True are not those of brisque"),
        ({"scale": [1, 5]}, r"scale \(1.0, 5.0\) .* not those of brisque"),
        (
            {"scorer": {"name": "musiq", "digest": "d"}},
            "'musiq': not known here; known are .*qalign",
        ),
        ({"scorer": {"name": "brisque"}}, "must have a name and a digest"),
        ({"scorer": None}, "scorer"),
        ({"format": "latent-pmrf/scores/9"}, "format: .*latent-pmrf/scores/1"),
        ({"scores": {"a": None}}, "scores.a: "),
        ({"more": 1}, "more: "),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    """What is wrong with it is named."""
    path = written(tmp_path, **changes)
    with pytest.raises(UsageError, match=rf"--scorer {path}: .*{named}"):
        read_scores(str(path))


def test_scores_of_other_crops_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    """Their keys are the same, their pixels are not; with the same options they are taken."""
    source, path = pictures(1), written(tmp_path)
    with pytest.raises(
        UsageError, match=r"other candidates .*stride: 48 -> 32.*; give the options"
    ):
        run(source, tmp_path / "set", scorer=str(path), stride=32)

    run(source, tmp_path / "set", scorer=str(path))


def test_a_file_that_is_not_there_is_refused() -> None:
    """By its name."""
    with pytest.raises(UsageError, match=r"nonexistent\.json: no such file"):
        describe(ScorerChoice(name="/nonexistent.json"), "cpu")


def test_what_has_no_scores_exports_none(pictures: Pictures, tmp_path: Path) -> None:
    """Nothing was scored; or not by Q-Align, whose scores the authors' format means."""
    source, target = pictures(1), str(tmp_path / "scores.json")
    run(source, tmp_path / "unscored", scorer="none", threshold=None)
    with pytest.raises(UsageError, match="nothing was scored"):
        curate.main(["export-scores", str(tmp_path / "unscored"), target])
    run(source, tmp_path / "set")
    with pytest.raises(UsageError, match=r"scored by brisque.*leave authors: out"):
        curate.main(["export-scores", str(tmp_path / "set"), f"authors:{target}"])

    assert curate.main(["export-scores", str(tmp_path / "set"), target]) == 0

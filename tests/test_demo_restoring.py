"""The demo page's model at work: the command's own files, and what it says of a photograph."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from pipelines.demo.config import DemoConfig
from pipelines.demo.options import Options
from pipelines.demo.restoring import Restoration
from pipelines.restore.config import RestoreConfig, RestoreRule, WholeRule
from pipelines.restore.job import Restoration as Job
from tests.conftest import picture
from tests.support.astronaut import portrait
from tests.support.curation_jobs import InProcess
from tests.support.demo_pages import Client, png, queued, tiny_bundle


@pytest.fixture(scope="module")
def restoration(tmp_path_factory: pytest.TempPathFactory) -> Restoration:
    """Load a model of tiny networks for a page of photographs of at most 10,000 pixels."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("bundle"))
    rule = RestoreRule(model=bundle, steps=7, device="cpu")
    return Restoration(DemoConfig(rule=rule, max_megapixels=0.01, min_face=5))


CASES: dict[str, Any] = {
    "as the model says": ("any", 32, {}, {}),
    "as the page says": ("any", 48, {"steps": 3, "strength": 0.5, "seed": 9, "samples": 3}, {}),
    "checked alignment": pytest.param("ffhq", 48, {}, {}, marks=pytest.mark.slow),
    "whole": pytest.param(
        *("any", 96, {"seed": 2, "samples": 2}, {"whole": True, "faces": "all"}),
        marks=pytest.mark.slow,
    ),
}


@pytest.mark.parametrize(("alignment", "side", "options", "whole"), CASES.values(), ids=CASES)
def test_the_page_gives_the_files_of_the_command(
    tmp_path: Path, alignment: str, side: int, options: dict[str, Any], whole: dict[str, Any]
) -> None:
    """The same pictures and the same JSON, to the byte, with the same settings and name."""
    share = 0.6 if whole else 1.0
    photograph = png(Image.fromarray(portrait(side, share=share)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Old photo.png").write_bytes(photograph)
    rule = RestoreRule(model=tiny_bundle(tmp_path / "model", alignment), device="cpu", steps=7)
    config = RestoreConfig(
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        rule=replace(rule, **options),
        whole=WholeRule(**whole),
    )
    Job(config).run(InProcess())
    restoration = Restoration(DemoConfig(rule=rule))
    with queued(restoration, restoration.facts) as (_, app):
        page = Client(app)
        job = page.sent(photograph, name="Old photo.png", **options, **whole)
        files = page.awaited(job)["files"]
        theirs = {
            path.name.replace("Old photo.", "restored." if path.stem == "Old photo" else ""): path
            for path in (tmp_path / "out").glob("Old photo.*")
        }

        assert len(theirs) >= 1 + options.get("samples", 1)
        mapped = {"spread.png"} if whole and "samples" in options else set()
        theirs.pop("restored.layers", None)  # the page lays the maps of the faces into one
        assert files.keys() == {"input.png", "posterior-mean.png", *mapped, *theirs}
        for name, path in theirs.items():
            assert page.get(f"{job}/{name}").content == path.read_bytes(), name


def test_a_whole_photograph_has_its_face_restored(restoration: Restoration) -> None:
    """Before and after differ in the face alone; progress and the posterior mean are there too."""
    said: list[float] = []
    photograph = portrait(96)
    options = Options(whole=True, faces="all", steps=2, samples=2, name="a.png")
    result = restoration(png(Image.fromarray(photograph)), options, said.append)
    before, after, mean = (
        np.asarray(Image.open(BytesIO(result.files[name])))
        for name in ("input.png", "restored.png", "posterior-mean.png")
    )

    assert (before == photograph).all()
    assert (after[:, 0] == before[:, 0]).all()
    assert (after[40:56, 40:56] != before[40:56, 40:56]).any(axis=2).mean() > 0.9
    assert (after != mean).any()
    assert said == pytest.approx([0.25, 0.5, 0.75, 1])
    assert result.summary["facts"]["faces restored"] == "1 of 1"
    assert json.loads(result.files["restored.json"])["whole"]["faces"] == "all"


def test_a_photograph_without_a_face_is_refused(restoration: Restoration) -> None:
    """Nothing is passed off as restored."""
    with pytest.raises(UserError, match="no face was found in the photograph"):
        restoration(png(picture(1, 90, 90)), Options(whole=True), lambda _: None)


def test_progress_is_counted_by_the_networks_evaluations(restoration: Restoration) -> None:
    """It rises by equal parts to 1, over all steps and samples."""
    said: list[float] = []
    options = Options(steps=4, strength=0.5, samples=3)
    restoration(png(picture(3, 32, 32)), options, said.append)

    assert said == pytest.approx([number / 6 for number in range(1, 7)])


@pytest.mark.parametrize(
    ("photograph", "said"),
    [
        (b"hello", "is no PNG, JPEG, WebP, TIFF, BMP, HEIC or AVIF"),
        (png(picture(1, 32, 32))[:-40], "cannot be decoded to its end"),
        (png(picture(1, 101, 101)), "101 x 101, at most 10000 pixels"),
        (png(picture(1, 32, 40)), "no aligned face: .* choose 'A whole photograph'"),
        (png(picture(1, 4, 4)), "4 x 4 pixels: smaller than --min-face 5"),
    ],
)
def test_a_photograph_that_cannot_be_used_is_refused_in_a_sentence(
    restoration: Restoration, photograph: bytes, said: str
) -> None:
    """It says what came, or what is read."""
    with pytest.raises(UserError, match=said):
        restoration(photograph, Options(), lambda _: None)


def test_the_controls_begin_with_what_the_page_was_started_with(restoration: Restoration) -> None:
    """The command line first, and where it says nothing the model."""
    assert restoration.facts.defaults == {"steps": 7, "strength": 1.0, "seed": 0, "samples": 1}
    assert "faces of 32 x 32 pixels, on a CPU" in restoration.facts.described

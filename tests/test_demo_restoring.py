"""The demo page's model at work: the command's own files, and what it says of a photograph."""

from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from pipelines.demo.config import DemoConfig
from pipelines.demo.options import Options
from pipelines.demo.restoring import Restoration
from pipelines.restore.config import RestoreConfig, RestoreRule
from pipelines.restore.job import Restoration as Job
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.demo_pages import Client, png, queued, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a bundle of tiny networks with random weights."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def restoration(bundle: str) -> Restoration:
    """Load it for a page of photographs of at most 10,000 pixels."""
    rule = RestoreRule(model=bundle, steps=7, device="cpu")
    return Restoration(DemoConfig(rule=rule, max_megapixels=0.01, min_face=5))


@pytest.mark.parametrize("side", [32, 48])
@pytest.mark.parametrize(
    "options", [{}, {"steps": 3, "strength": 0.5, "seed": 9, "samples": 3}], ids=["model", "page"]
)
def test_the_page_gives_the_files_of_the_command(
    restoration: Restoration, bundle: str, tmp_path: Path, side: int, options: dict[str, Any]
) -> None:
    """The same pictures and the same JSON, to the byte, with the same settings and name."""
    photograph = png(picture(3, side, side))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Old photo.png").write_bytes(photograph)
    rule = RestoreRule(model=bundle, device="cpu", **{"steps": 7, **options})
    config = RestoreConfig(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), rule=rule)
    Job(config).run(InProcess())
    with queued(restoration, restoration.facts) as (_, app):
        page = Client(app)
        job = page.sent(photograph, name="Old photo.png", **options)
        files = page.awaited(job)["files"]
        samples = [name for name in files if name.startswith(("sample", "spread"))]

        assert len(samples) == options.get("samples", 0)  # all but the first, and their spread
        assert files.keys() == {
            *("input.png", "restored.png", "restored.json", "posterior-mean.png"),
            *samples,
        }
        for name in ("restored.png", "restored.json", *samples):
            theirs = f"Old photo.{name.removeprefix('restored.')}"
            assert page.get(f"{job}/{name}").content == (tmp_path / "out" / theirs).read_bytes()


def test_progress_is_counted_by_the_networks_evaluations(restoration: Restoration) -> None:
    """It rises by equal parts to 1, over all steps and samples."""
    said: list[float] = []
    options = Options(steps=4, strength=0.5, samples=3)
    restoration(png(picture(3, 32, 32)), options, said.append)

    assert said == pytest.approx([number / 6 for number in range(1, 7)])


@pytest.mark.parametrize(
    ("photograph", "said"),
    [
        (b"hello", "no image that can be read"),
        (png(picture(1, 32, 32))[:-40], "ends too early"),
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

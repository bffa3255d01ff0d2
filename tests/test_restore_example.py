"""What a newcomer sees first: one face, restored by the bundle that comes with the project."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.bundle import load_bundle
from pipelines.demo.config import DemoConfig
from pipelines.restore import example
from pipelines.restore.__main__ import main
from pipelines.restore.bundles import INCLUDED, open_bundle
from pipelines.restore.config import PRESETS
from pipelines.restore.job import Restoration
from tests.support.curation_jobs import InProcess

BUNDLE = INCLUDED["portraits128"]
LARGEST = 8_000_000  # bytes of a bundle in the repository


@pytest.fixture(scope="module")
def astronaut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Restore the example, as the command without arguments does, but without Ray."""
    folder = tmp_path_factory.mktemp("example")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        example.write_pair("data/astronaut")
        Restoration(PRESETS["demo"]).run(InProcess())
    return folder / "data" / "astronaut"


def read(path: Path) -> np.ndarray:
    """Read a picture as RGB uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_page_shows_the_face_four_times(astronaut: Path) -> None:
    """LQ, posterior mean, restored and HQ."""
    page = (astronaut / "restored" / "report.html").read_text()
    for what in ("input", "posterior mean", "restored", "HQ"):
        assert page.count(f"<figcaption>{what}</figcaption>") == 1


def test_the_page_has_facts_of_the_model_and_no_raw_markdown(astronaut: Path) -> None:
    """What the model card says in prose stands in the card alone."""
    page = (astronaut / "restored" / "report.html").read_text()
    assert "<td>training.held_out</td><td>38</td>" in page
    assert "training.about" not in page


def test_the_posterior_mean_is_nearer_to_hq_than_lq_is(astronaut: Path) -> None:
    """The face is in no training data of the bundle."""
    hq = read(astronaut / "hq" / "astronaut.png")
    errors = {
        name: np.square(read(astronaut / name).astype(float) - hq).mean()
        for name in ("lq/astronaut.png", "restored/astronaut.posterior-mean.png")
    }

    assert errors["restored/astronaut.posterior-mean.png"] < errors["lq/astronaut.png"]


def test_restored_is_sharper_than_the_posterior_mean(astronaut: Path) -> None:
    """By the mean gradient, which HQ has more of than both."""

    def sharpness(path: str) -> float:
        grey = read(astronaut / path).astype(float).mean(2)
        return float(np.hypot(*np.gradient(grey)).mean())

    mean, restored, hq = (
        sharpness(path)
        for path in (
            "restored/astronaut.posterior-mean.png",
            "restored/astronaut.png",
            "hq/astronaut.png",
        )
    )
    assert mean < restored < 1.5 * hq


def test_the_included_bundle_is_small_and_has_a_card() -> None:
    """In float16, with what it was trained on and what it cannot do."""
    assert sum(file.stat().st_size for file in BUNDLE.rglob("*")) < LARGEST
    config = load_bundle(BUNDLE).config
    card = (BUNDLE / "README.md").read_text()

    assert (config.dtype, config.size) == ("float16", 128)
    for said in ("## Data", "small, skewed, 128 px", "## What it cannot do", config.digest):
        assert said in card


def test_the_included_bundle_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder; it is what the demo page begins with."""
    monkeypatch.chdir(tmp_path)

    assert open_bundle("portraits128").config == load_bundle(BUNDLE).config
    assert DemoConfig().rule.model == "portraits128"


@pytest.mark.slow
def test_the_command_without_arguments_restores_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints where the page is."""
    monkeypatch.chdir(tmp_path)

    assert main([]) == 0
    page = tmp_path / "data" / "astronaut" / "restored" / "report.html"
    assert f"before and after: {page}" in capfd.readouterr().out
    assert page.is_file()

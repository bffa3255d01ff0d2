"""`python -m pipelines.demo` as a program: what it prints, and how it ends."""

import json
import signal
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.conftest import PATIENCE, picture, program
from tests.support.demo_pages import png, tiny_bundle


@pytest.mark.slow
@pytest.mark.usefixtures("signals_by_default")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_in_the_middle_of_a_photograph(
    tmp_path: Path, number: signal.Signals
) -> None:
    """It says where the page is; a signal ends it without a word, and nothing is left behind."""
    bundle = tiny_bundle(tmp_path / "bundle")
    before = sorted(tmp_path.rglob("*"))
    running = program("pipelines.demo", ["--model", bundle, "--port", "0"], tmp_path)
    assert running.stdout is not None
    described, address = running.stdout.readline(), running.stdout.readline().split()[0]
    photograph = Request(f"{address}/restore?steps=100&samples=8", png(picture(1, 32, 32)))
    with urlopen(photograph, timeout=PATIENCE) as answer:
        job = json.load(answer)["job"]
    while True:
        with urlopen(f"{address}/jobs/{job}", timeout=PATIENCE) as answer:
            if json.load(answer)["progress"] > 0:
                break
    running.send_signal(number)
    said = running.communicate(timeout=PATIENCE)

    assert "faces of 32 x 32 pixels, on a" in described
    assert said == ("", "")
    assert running.returncode == 128 + number
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(OSError, match="refused"):
        urlopen(address)

"""BRISQUE: the published numbers, faster, and undefined where it is."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from safetensors.numpy import load_file
from skimage import data

from models.metrics import brisque
from models.metrics.brisque import Brisque

OF_PACKAGE = {  # what brisque 0.2.0 computes from the same pixels, step by step
    "astronaut": 10.794862939073454,
    "coffee": 3.1560395039018374,
    "chelsea": 2.870766629424878,
    "rocket": 6.681897309728214,
    "hubble_deep_field": 10.14823062752825,
    "retina": 70.7058530559278,
}
BEFORE = {
    "astronaut": 10.795528090084844,
    "coffee": 3.15604472645893,
    "chelsea": 2.8707684619919007,
    "rocket": 6.686129475424167,
    "hubble_deep_field": 10.148229992134219,
    "retina": 70.8393153671702,
}
PHOTOGRAPHS = tuple(BEFORE)
SVM_HEADER = """svm_type epsilon_svr
kernel_type rbf
gamma {gamma:g}
nr_class 2
total_sv {count}
rho {rho:g}
probA 6.34795
SV
"""


@pytest.fixture(scope="module")
def scorer() -> Brisque:
    """Load the parameters once."""
    return Brisque()


def photograph(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the top left 512 pixels of a real photograph."""
    image: np.ndarray[Any, np.dtype[np.uint8]] = getattr(data, name)()[:512, :512]
    return image


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_scores_are_the_packages(scorer: Brisque, name: str) -> None:
    """Scores agree with those of brisque 0.2.0 to 0.01 points of 100; to 0.3 where much is flat.

    There the package counts the signs of rounding errors: the retina is black outside.
    """
    score = scorer.score([photograph(name)])[0]

    assert score == pytest.approx(OF_PACKAGE[name], abs=0.3 if name == "retina" else 0.01)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_scores_are_those_of_sets_scored_before(scorer: Brisque, name: str) -> None:
    """Scores stay what they were when the parameters were read from the package's own files.

    On the processor that computed the expected values they are equal to the bit; another one's
    rounding moves a score by about 1e-9.
    """
    assert scorer.score([photograph(name)])[0] == pytest.approx(BEFORE[name], abs=1e-6)


@pytest.mark.parametrize("name", PHOTOGRAPHS[:-1])  # the retina is soft, and black outside
def test_damage_makes_the_score_worse(scorer: Brisque, name: str) -> None:
    """Blur and noise raise it: lower is better."""
    image = photograph(name)
    noise = np.random.default_rng(0).normal(0, 40, image.shape)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(4)))
    clean, worse, worst = scorer.score([image, blurred, noisy])

    assert clean < worse
    assert clean < worst


def test_an_image_without_variation_has_no_score(scorer: Brisque) -> None:
    """One colour, whichever it is, has no statistics; the caller drops it with a reason."""
    colours = [(v, w, u) for v in (0, 10, 47, 128, 255) for w in (13, 47, 240) for u in (47, 201)]
    flat = [np.full((64, 64, 3), colour, np.uint8) for colour in colours]

    assert np.isnan(scorer.score(flat)).all()


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (1, 1)])
def test_an_image_of_one_row_or_column_has_no_score(
    scorer: Brisque, shape: tuple[int, int]
) -> None:
    """It has no half size, at which OpenCV raised an error of its own."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)

    assert np.isnan(scorer.score([image])[0])


def test_rounding_does_not_decide_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of one unit in the last place moves no score, even over a flat region.

    Another processor's instructions round in another way, and a score decides who is kept.
    """
    image = photograph("astronaut").copy()
    image[:256] = (31, 31, 31)
    expected = Brisque().features(image)
    noise = np.random.default_rng(0)
    exact = brisque._normalise

    def disturbed(grey: brisque.Floats) -> brisque.Floats:
        return exact(grey * (1 + 2e-16 * noise.standard_normal(grey.shape)))

    monkeypatch.setattr(brisque, "_normalise", disturbed)

    assert np.abs(Brisque().features(image) - expected).max() < 1e-9


def test_a_score_does_not_depend_on_its_company(scorer: Brisque) -> None:
    """Batches of any make-up give the same bits: scores decide membership."""
    images = [photograph(name) for name in PHOTOGRAPHS]

    assert scorer.score(images) == [scorer.score([image])[0] for image in images]
    assert scorer.score([]) == []


def test_a_loaded_scorer_travels_to_workers(scorer: Brisque) -> None:
    """It pickles, and its identity is that of the parameter files."""
    copy = pickle.loads(pickle.dumps(scorer))

    assert copy.digest == scorer.digest == Brisque().digest
    assert len(scorer.digest) == 64


def test_the_digest_is_that_of_the_published_files() -> None:
    """Both files, written again from the tensors, are to the byte what was published and scored."""
    values = load_file(brisque.PARAMETERS)
    rows = zip(values["coefficients"], values["vectors"], strict=True)
    lines = (
        f"{weight:.16g} {' '.join(f'{at}:{x:.8g}' for at, x in enumerate(vector, 1))} \n"
        for weight, vector in rows
    )
    count, gamma, rho = len(values["vectors"]), values["gamma"][0], values["rho"][0]
    svm = SVM_HEADER.format(gamma=gamma, rho=rho, count=count) + "".join(lines)
    ranges = {"min_": values["low"].tolist(), "max_": values["high"].tolist()}
    files = svm.encode(), pickle.dumps(ranges, protocol=4)
    notice = brisque.PARAMETERS.with_suffix(".md").read_text()

    assert all(hashlib.sha256(file).hexdigest() in notice for file in files)
    assert hashlib.sha256(b"1" + b"".join(files)).hexdigest() == Brisque().digest


def test_other_parameters_do_not_pass_for_the_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed file is refused, so that no score bears a digest that is not its own."""
    changed = tmp_path / "brisque.safetensors"
    changed.write_bytes(brisque.PARAMETERS.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(brisque, "PARAMETERS", changed)

    with pytest.raises(ValueError, match="restore the file"):
        Brisque()

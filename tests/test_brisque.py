"""BRISQUE: the published numbers, faster, and undefined where it is."""

import pickle
import warnings
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import color, data

from models.metrics import brisque
from models.metrics.brisque import Brisque, _PlainUnpickler

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")


@pytest.fixture(scope="module")
def scorer() -> Brisque:
    """Load the parameters once."""
    return Brisque()


@pytest.fixture(scope="module")
def package() -> Any:
    """Load the package whose parameters these are; it still imports names that SciPy deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brisque import BRISQUE

        return BRISQUE(url=False)


def photograph(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the top left 512 pixels of a real photograph."""
    image: np.ndarray[Any, np.dtype[np.uint8]] = getattr(data, name)()[:512, :512]
    return image


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_scores_are_the_packages(scorer: Brisque, package: Any, name: str) -> None:
    """Features agree to 1e-4 and scores to 0.01 points of 100; to 0.3 where much is flat.

    There the package counts the signs of rounding errors: the retina is black outside. Its own
    `score` fails on current NumPy (it takes float() of one-element arrays), so its steps are
    called one by one here.
    """
    image = photograph(name)
    grey = color.rgb2gray(image)
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    fits = [package.calculate_brisque_features(g, kernel_size=7, sigma=7 / 6) for g in (grey, half)]
    features = np.array([np.ravel(value)[0] for value in np.concatenate(fits)], np.float64)
    expected = package.calculate_image_quality_score(features)

    looser = 30 if name == "retina" else 1
    assert np.abs(scorer.features(image) - features).max() < 1e-4 * looser
    assert scorer.score([image])[0] == pytest.approx(expected, abs=0.01 * looser)


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


def test_parameters_cannot_run_code() -> None:
    """A pickle that names a callable is refused."""
    import io

    with pytest.raises(pickle.UnpicklingError, match="plain numbers"):
        _PlainUnpickler(io.BytesIO(pickle.dumps(np.float64(1)))).load()

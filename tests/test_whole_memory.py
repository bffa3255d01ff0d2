"""A large photograph takes a small multiple of its own bytes, and a face those of a face."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.photographs import Photograph
from datasets.png import png
from pipelines.restore.networks import RestoredFace
from pipelines.restore.whole import put_back, restore_faces
from tests.conftest import ROOT
from tests.support.large_photograph import faces
from tests.support.tiny_bundle import write_tiny_bundle

MEGABYTE = 1 << 20


def test_a_face_takes_memory_of_its_own_size() -> None:
    """Restoring one face of 12 megapixels takes as much memory as of one megapixel."""
    taken = {}
    for side in (1000, 3464):
        photograph = Photograph(np.full((side, side, 3), 90, np.uint8))

        def choose(shown: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[object]:
            return [face for face in faces(shown[:1000, :1000], 64) if face.number == 1]

        tracemalloc.start()
        made = restore_faces(
            photograph, "us", choose, lambda given, _: [RestoredFace(f, None) for f in given], "off"
        )
        list(put_back(photograph, [patches[0] for patches in made.patches.values()]))
        _, taken[side] = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert taken[3464] <= taken[1000] + MEGABYTE
    assert taken[1000] <= 8 * MEGABYTE


def drawn(side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Draw a large picture with some grain, a strip at a time."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(-6, 7, (500, side, 3), dtype=np.int16)
    for first in range(0, side, 500):
        pixels[first : first + 500] = np.clip(pixels[first : first + 500] + grain, 0, 255)
    return pixels


@pytest.mark.slow  # two minutes each: pictures of 100 megapixels
@pytest.mark.parametrize("kind", ["jpeg on its side", "png of 16 bits"])
def test_a_hundred_megapixels_take_three_times_their_bytes(kind: str, tmp_path: Path) -> None:
    """The peak of reading, restoring four faces, layers and writing is 3 times the pixels."""
    pixels = drawn(10_000)
    file = tmp_path / "large"
    decoded = pixels.nbytes
    if kind == "png of 16 bits":
        file.write_bytes(png(pixels.astype(np.uint16) * 257))
        decoded *= 2
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(file, "JPEG", quality=92, exif=exif)
    del pixels
    model = write_tiny_bundle(tmp_path / "bundle")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.large_photograph", str(model), str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    taken, restored = map(int, ran.stdout.split())

    assert restored == 4
    assert taken <= 3 * decoded, f"{taken / decoded:.2f} times"

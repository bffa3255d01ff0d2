"""A perceptual hash: images that look the same have hashes that differ in few bits.

The hash is a pHash (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010) of 256 bits: the image in grey, reduced to 64 x 64, and of its cosine transform
the signs of 16 x 16 low frequencies about their median. All of it is integer arithmetic, so that
every processor computes the same bits.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets.decoding import Pixels

Hashes = npt.NDArray[np.uint64]
"""Perceptual hashes [N, 4]."""
SIDE, FREQUENCIES = 64, 16
BITS = FREQUENCIES**2
LEAST_CONTRAST = 8  # grey levels between the darkest and the brightest of the 64 x 64
NEAR = 20
"""Bits of 256: images whose hashes differ in at most so many are near duplicates."""


def _cosines() -> npt.NDArray[np.int64]:
    """Return the rows 1 to 16 of the discrete cosine transform (DCT-II), in units of 1 / 4096."""
    frequency = np.arange(1, FREQUENCIES + 1)[:, None]
    angle = np.pi * frequency * (2 * np.arange(SIDE) + 1) / (2 * SIDE)
    cosines: npt.NDArray[np.int64] = np.rint(4096 * np.cos(angle)).astype(np.int64)
    return cosines


COSINES = _cosines()


def perceptual_hash(image: Pixels) -> str | None:
    """Hash an image by what it looks like.

    Args:
        image: RGB uint8 [H, W, 3], upright.

    Returns:
        64 hexadecimal digits; None for an image of nearly one grey, which looks like any other.
    """
    grey = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.int64)
    if np.ptp(small) < LEAST_CONTRAST:
        return None
    waves = (COSINES @ small @ COSINES.T).ravel()
    return np.packbits(waves > np.sort(waves)[BITS // 2 - 1]).tobytes().hex()


def unpacked(hashes: list[str]) -> Hashes:
    """Turn hexadecimal hashes into an array of 64-bit words."""
    data = bytes.fromhex("".join(hashes))
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, BITS // 64)


def near(hashed: npt.NDArray[np.uint64], hashes: Hashes) -> list[int]:
    """Find the hashes that differ from one hash in at most `NEAR` bits.

    The last 64 bits, in which pictures differ most, are compared first, and the others only where
    these leave it possible.

    Args:
        hashed: one hash [4].
        hashes: hashes [N, 4].

    Returns:
        Their indices, ascending.
    """
    possible = np.flatnonzero(np.bitwise_count(hashes[:, -1] ^ hashed[-1]) <= NEAR)
    differing = np.bitwise_count(hashes[possible] ^ hashed).sum(axis=1, dtype=np.int64)
    found: list[int] = possible[differing <= NEAR].tolist()
    return found


def near_pairs(hashes: Hashes) -> list[tuple[int, int]]:
    """Find all pairs i < j of near duplicates, by comparing every pair.

    A billion (10^9) of pairs take about four seconds of a core, and all cores are used. FFHQ has
    2.4 billion pairs; FFHQ and LSDIR together have 12 billion.
    """
    hashes = np.asfortranarray(hashes)

    def later(i: int) -> list[tuple[int, int]]:
        return [(i, i + 1 + j) for j in near(hashes[i], hashes[i + 1 :])]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [pair for found in pool.map(later, range(len(hashes))) for pair in found]

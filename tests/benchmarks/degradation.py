"""Batched degradation against one image at a time, on one core at 512 pixels."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from skimage.data import astronaut

from datasets.degradation.batched import blur_and_downscale, degrade_batch
from datasets.degradation.parameters import PRESETS, DegradationParameters
from datasets.degradation.reference import degrade, draw_parameters, recorded, to_float
from datasets.degradation.steps import Image, replay
from tests.benchmarks.harness import paired

COUNT = 64
BATCH = 8


def degradation() -> dict[str, Any]:
    """Time PMRF's draws whole, then blur and downscale alone, against OpenCV's on the same core.

    Returns:
        wall time of both paths; their images per second of CPU time, that is per core; the blur,
        with the GFLOP/s it reaches by its own count, next to those of a matrix product; how far LQ
        differs.
    """
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    hq = astronaut()
    drawn = [draw_parameters(PRESETS["pmrf"], seed=0, key=str(key)) for key in range(COUNT)]

    def batched() -> None:  # results are dropped as they come: fresh memory would slow both alike
        for start in range(0, COUNT, BATCH):
            degrade_batch([hq] * BATCH, drawn[start : start + BATCH])

    def one_by_one() -> None:
        for record in drawn:
            degrade(hq, record)

    wall: dict[str, Any] = paired(batched, one_by_one)
    ours, theirs = _cpu_seconds(batched), _cpu_seconds(one_by_one)
    return {
        "batched_over_one_by_one": wall,
        "images_per_cpu_second": {
            "batched": round(COUNT / ours, 1),
            "one_by_one": round(COUNT / theirs, 1),
            "speedup": round(theirs / ours, 2),
        },
        "blur_and_downscale_over_opencv": _blurs(to_float(hq)),
        "matrix_product_gflop_per_s": _ceiling(),
        "difference_of_lq": _difference(hq, drawn),
    }


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Return the median CPU time of five calls: what neighbours on the machine disturb least."""
    seconds = []
    for _ in range(5):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def _blurs(image: Image) -> dict[str, Any]:
    """Time blur and downscale of one image at several downscales."""
    record = draw_parameters(PRESETS["pmrf"], seed=0, key="a")
    measured: dict[str, Any] = {}
    for downscale in (2.0, 8.0, 32.0):
        small = replace(record, blur_sigma=(9.0, 4.0), blur_angle=0.6, downscale=downscale)
        timing = paired(
            partial(blur_and_downscale, [image], [small], "cpu"), _opencv(image, small), runs=15
        )
        gflop = _gflop(int(512 // downscale))
        measured[f"at_{downscale:g}"] = {
            **timing,
            "gflop": round(gflop, 3),
            "gflop_per_s": round(gflop / timing["ours_s"], 1),
        }
    return measured


def _gflop(rows: int) -> float:
    """Count the transforms of one image of 512 pixels: 2.5 n log2 n real, 5 n log2 n complex."""
    n, half = 576, 289
    along = n * np.log2(n)
    forward = 3 * (552 * 2.5 + half * 5) * along + (41 * 2.5 + half * 5) * along
    back = 3 * (half * 5 + rows * 2.5) * along
    return float(forward + back) / 1e9


def _opencv(image: Image, record: DegradationParameters) -> Callable[[], object]:
    """Return the reference path's blur and downscale."""
    both = {k: v for k, v in recorded(record, image.shape).items() if k in ("blur", "downscale")}
    composition = replay(both, gray_target=False)
    return lambda: composition(image=image, hq=image)


def _ceiling() -> float:
    """Measure the GFLOP/s of a float32 matrix product of 1,024 on this core."""
    square = torch.rand(1024, 1024)
    timing = paired(lambda: square @ square, lambda: None)
    return round(2 * 1024**3 / timing["ours_s"] / 1e9, 1)


def _difference(hq: Any, drawn: list[DegradationParameters]) -> dict[str, float]:
    """Compare LQ of both paths, in levels of 255."""
    levels = [
        abs(ours.lq - degrade(hq, record).lq) * 255
        for ours, record in zip(degrade_batch([hq] * len(drawn), drawn), drawn, strict=True)
    ]
    return {
        "equal_images": float(np.mean([level.max() == 0 for level in levels])),
        "mean_level": float(np.mean(levels)),
        "max_level": float(np.max(levels)),
    }

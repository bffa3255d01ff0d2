"""The curation job against a bare loop: `python -m tests.benchmarks.curate FOLDER_OF_PHOTOGRAPHS`.

Bare loop: two processes, each reading, decoding, cropping and encoding its half of the images in
key order and appending the PNGs to one tar; no engine, no manifest, no resume. Once as it is,
against the job with `--scorer none`; once scoring each patch too, against the job with `--scorer
brisque`. Ray's start-up is told apart: it does not grow with the input.
"""

import argparse
import contextlib
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.harness import RUNS, save

WORKERS = 2


def bare(arguments: tuple[str, int, int, int, bool, str]) -> int:
    """Do one process's half of the images; returns the number of patches."""
    import tarfile
    from io import BytesIO

    from datasets.decoding import decode, encode_png, single_threaded
    from datasets.sources import list_images, read
    from models.metrics.brisque import Brisque
    from pipelines.curate.config import CropRule
    from pipelines.curate.crop import cut_all

    folder, half, size, stride, scored, output = arguments
    single_threaded()
    scorer = Brisque()
    rule = CropRule(mode="crop", size=size, stride=stride)
    count = 0
    with tarfile.open(f"{output}/{half}.tar", "w") as tar:
        for ref in list_images([folder], Path(output)).images[half::WORKERS]:
            patches = list(cut_all(decode(read(ref)), rule))
            if scored and patches:
                scorer.score([patch for _, _, patch in patches])
            for index, _, patch in patches:
                png = encode_png(patch)
                info = tarfile.TarInfo(f"{ref.key}_s{index:03d}.png")
                info.size = len(png)
                tar.addfile(info, BytesIO(png))
                count += 1
    return count


def run_bare(folder: str, size: int, stride: int, *, scored: bool) -> tuple[float, float, int]:
    """Time the bare loop with its processes' start; returns (seconds, CPU seconds, patches)."""
    with tempfile.TemporaryDirectory() as output:
        units = [(folder, half, size, stride, scored, output) for half in range(WORKERS)]
        start = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            found = pool.map_async(bare, units)
            cpu = _cpu_seconds(psutil.Process(), found.ready, count_it=False)
            patches = sum(found.get())
        return time.perf_counter() - start, cpu, patches


def _cpu_seconds(process: psutil.Process, ended: Callable[[], bool], *, count_it: bool) -> float:
    """Return the CPU seconds of a process's tree, which other work on the machine disturbs little.

    Args:
        process: the root of the tree.
        ended: tells when to stop.
        count_it: whether the root counts, and not only the processes below it.
    """
    seen: dict[int, float] = {}
    while not ended():
        for one in (*([process] if count_it else []), *_children(process)):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                seen[one.pid] = times.user + times.system
        time.sleep(0.1)
    return sum(seen.values())


def run_job(folder: str, output: Path, scorer: str, *extra: str) -> tuple[float, float, float]:
    """Time the job as a user starts it; returns (seconds, of them to start Ray, CPU seconds)."""
    command = [sys.executable, "-m", "pipelines.curate", "--preset", "lsdir", "--input", folder]
    command += ["--output", str(output), "--scorer", scorer, "--workers", str(WORKERS)]
    command += ["--no-track", "--samples-per-shard", "32", "--max-bad", "1", *extra]
    start = time.perf_counter()
    job = psutil.Popen(command, stdout=subprocess.DEVNULL)
    cpu = _cpu_seconds(job, lambda: job.poll() is not None, count_it=True)
    seconds = time.perf_counter() - start
    if job.returncode:
        raise RuntimeError(f"the job failed with exit code {job.returncode}")
    times = json.loads((output / ".curate" / "times.json").read_text())
    ray = sum(stage["startup"] if stage["steps"] else stage["wall"] for stage in times)
    return seconds, ray, cpu


def compare(folder: str, size: int, stride: int, *, scored: bool) -> dict[str, Any]:
    """Time job and bare loop in turn; the ratio is of patches per second, job over bare."""
    scorer = "brisque" if scored else "none"
    extra = ["--size", str(size), "--stride", str(stride)]
    extra += ["--threshold", "1000"] if scored else []
    rows = []
    for _ in range(RUNS):
        output = Path(tempfile.mkdtemp(), "set")
        job, ray_start, job_cpu = run_job(folder, output, scorer, *extra)
        seconds, bare_cpu, patches = run_bare(folder, size, stride, scored=scored)
        again = time.perf_counter()
        run_job(folder, output, scorer, *extra, "--val-fraction", "0.1")
        again = time.perf_counter() - again
        rows.append((job, ray_start, seconds, again, patches, job_cpu, bare_cpu))
        shutil.rmtree(output.parent)
    median = [statistics.median(column) for column in zip(*rows, strict=True)]
    return {
        "patches": rows[0][4],
        "job_s": median[0],
        "of_it_starting_ray_and_workers_s": median[1],
        "bare_s": median[2],
        "cut_again_s": median[3],
        "job_cpu_s": median[5],
        "bare_cpu_s": median[6],
        "ratio": statistics.median(row[2] / row[0] for row in rows),
        "ratio_of_cpu_seconds": statistics.median(row[6] / row[5] for row in rows),
        "ratio_without_that_start": statistics.median(row[2] / (row[0] - row[1]) for row in rows),
        "cut_again_over_first": statistics.median(row[3] / row[0] for row in rows),
        "runs": RUNS,
    }


def ray_writer(folder: str, size: int, stride: int) -> float:
    """Time the same photographs through ray.data.write_webdataset, Ray's start not counted."""
    import ray
    import ray.data

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def patches(row: dict[str, Any]) -> list[dict[str, Any]]:
        from datasets.decoding import decode, encode_png
        from pipelines.curate.config import CropRule
        from pipelines.curate.crop import cut_all

        rule = CropRule(mode="crop", size=size, stride=stride)
        stem = Path(row["path"]).stem
        return [
            {"__key__": f"{stem}_s{index:03d}", "png": encode_png(patch)}
            for index, _, patch in cut_all(decode(row["bytes"]), rule)
        ]

    with tempfile.TemporaryDirectory() as output:
        start = time.perf_counter()
        images = ray.data.read_binary_files(folder, include_paths=True, override_num_blocks=8)
        images.flat_map(patches).write_webdataset(output, encoder=None)
        seconds = time.perf_counter() - start
    ray.shutdown()
    return seconds


def peak_memory(count: int) -> dict[str, float]:
    """Curate ``count`` photographs of 24 megapixels; returns the peak of all processes together.

    Counted is USS, what each process has for itself, sampled five times a second, with what the
    job's processes share counted once by Ray's object store limit. Empty Ray is told apart.
    """
    from tests.conftest import picture

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "raw")
        source.mkdir()
        large = picture(1, 6000, 4000)
        large.save(source / "photo-000.jpg", quality=92)
        for number in range(1, count):
            shutil.copy(source / "photo-000.jpg", source / f"photo-{number:03d}.jpg")
        command = [sys.executable, "-m", "pipelines.curate", "--preset", "lsdir", "--no-track"]
        command += ["--input", str(source), "--output", f"{folder}/set", "--scorer", "brisque"]
        command += ["--threshold", "1000", "--stride", "512", "--workers", str(WORKERS)]
        job = psutil.Popen(command, stdout=subprocess.DEVNULL)
        peak = largest = 0.0
        while job.poll() is None:
            sizes = [_own_memory(process) for process in (job, *_children(job))]
            peak, largest = max(peak, sum(sizes)), max(largest, *sizes)
            time.sleep(0.2)
        size = sum(path.stat().st_size for path in source.iterdir())
    if job.returncode:
        raise RuntimeError(f"the job failed with exit code {job.returncode}")
    return {
        "photographs": count,
        "megapixels_each": 24,
        "input_MiB": size / 2**20,
        "peak_all_processes_MiB": peak,
        "peak_largest_process_MiB": largest,
    }


def _children(job: Any) -> list[Any]:
    try:
        children: list[Any] = job.children(recursive=True)
    except psutil.Error:
        return []
    return children


def _own_memory(process: Any) -> float:
    """Return a process's own memory in MiB; 0 for one that has just ended."""
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.Error:
        return 0.0


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--stride", type=int, default=384)
    options = parser.parse_args()
    sizes = (options.size, options.stride)
    measurements = {
        "images": sum(1 for path in Path(options.folder).rglob("*") if path.is_file()),
        "unscored": compare(options.folder, *sizes, scored=False),
        "brisque": compare(options.folder, *sizes, scored=True),
        "ray_write_webdataset_s": statistics.median(
            ray_writer(options.folder, *sizes) for _ in range(RUNS)
        ),
        "memory": [peak_memory(count) for count in (10, 100)],
    }
    save("curate", measurements, "ray", "pillow", "numpy", "opencv-python-headless")
    sys.stdout.write(json.dumps(measurements, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Encoding against a bare loop of the same networks: `python -m tests.benchmarks.encode IMAGE_SET`.

Bare loop: one process, one thread, the same calls in the same order (decode, degrade, SwinIR, three
passes of the encoder) on images in memory, `torch.save`d nowhere. Against it, taken in turn: the
job's worker, which also reads, checks, rounds, sums and writes a durable tar; and the whole job as
a user starts it, with Ray. Networks small in width, so that the job's own part is as visible as it
can get: the published ones compute a hundred times longer on the same bytes.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.degradation.batched import degrade_batch
from datasets.reading.image_set import ImageSet
from infra.config import to_dict
from pipelines.encode.config import EncodeConfig, EncodeRule
from pipelines.encode.job import Encoding
from pipelines.encode.members import GenerationSpec
from pipelines.encode.networks import Encoder
from pipelines.encode.worker import EncodeShard
from pipelines.jobs.plan import write_plan
from tests.benchmarks.harness import RUNS, paired, save
from tests.support.encoding_jobs import write_networks


def bare(encoder: Encoder, images: ImageSet, draws: int) -> Callable[[], None]:
    """Return the bare loop over all images."""
    restorer = encoder.restorer

    def loop() -> None:
        for row in images.spread(len(images.rows)):
            sample = images.sample(row)
            hq = encoder.tensor([sample.image.astype(np.float32) / np.float32(255)])
            restorer.posterior(hq)
            restorer.posterior(hq.flip(3))
            for number in range(draws):
                parameters = encoder.parameters(sample.key, number)
                (pair,) = degrade_batch([sample.image], [parameters])
                lq = encoder.tensor([pair.lq])
                restorer.posterior(restorer.posterior_mean(lq))

    return loop


def worker(config: EncodeConfig, folder: Path) -> Callable[[], object]:
    """Return the job's worker on one shard of all images."""
    encoding = Encoding(config)
    plan = folder / "plan.parquet"
    write_plan(plan, [encoding.images.rows])
    latent = encoding.latent_format({})
    work = GenerationSpec(
        plan=str(plan),
        images=config.input,
        size=encoding.images.size,
        first=0,
        last=config.draws,
        latent=to_dict(latent),
        keep_images=False,
    )
    actor = EncodeShard(work, encoding.rule)
    return lambda: actor({"name": "train-000000.tar", "row_group": 0})


def whole_job(config: EncodeConfig, workers: int) -> dict[str, float]:
    """Time the job as a user starts it; Ray's start told apart."""
    rows = []
    for _ in range(RUNS):
        output = Path(tempfile.mkdtemp(), "set")
        command = [sys.executable, "-m", "pipelines.encode", "--preset", "cpu", "--no-track"]
        for name in ("input", "vae", "predictor", "draws"):
            command += [f"--{name}", str(getattr(config, name))]
        command += ["--samples-per-shard", "8", "--workers", str(workers), "--output", str(output)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        stages = json.loads((output / ".encode" / "times.json").read_text())
        rows.append((seconds, next(s["wall"] for s in stages if s["name"] == "encode")))
        shutil.rmtree(output.parent)
    seconds, encode = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "workers": workers,
        "job_s": seconds,
        "of_it_encode_stage_with_start_of_workers_s": encode,
    }


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="an image set of python -m pipelines.curate")
    parser.add_argument("--draws", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_networks(Path(temporary))
        config = EncodeConfig(
            input=options.images,
            output=str(folder / "set"),
            rule=EncodeRule(
                vae=str(folder / "vae"), predictor=str(folder / "predictor"), device="cpu"
            ),
            draws=options.draws,
            track=False,
        )
        images = ImageSet(Path(options.images))
        encoder = Encoder(config.rule)
        ours, theirs = worker(config, folder), bare(encoder, images, options.draws)
        one = paired(ours, theirs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        count = len(images.rows)
        cpu = {"worker": cpu_seconds(ours), "bare": cpu_seconds(theirs)}
        measurements: dict[str, Any] = {
            "images": count,
            "size": images.size,
            "draws": options.draws,
            "worker_over_bare_seconds": one,
            "cpu_seconds": cpu,
            "images_per_cpu_second": count / cpu["worker"],
            "peak_of_one_process_MiB": peak,
            "cpu_seconds_by_batch": {size: by_batch(encoder, images, size) for size in (1, 4, 16)},
            "job": whole_job(config, 2),
        }
    save("encode", measurements, "torch", "ray", "numpy")
    sys.stdout.write(json.dumps(measurements, indent=1) + "\n")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of one call, which a busy machine does not stretch."""
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def by_batch(encoder: Encoder, images: ImageSet, size: int) -> float:
    """Return the CPU seconds of a posterior mean and its latent, in batches of ``size``."""
    rows = images.spread(16)
    pixels = [images.sample(row).image.astype(np.float32) / np.float32(255) for row in rows]
    batches = [encoder.tensor(pixels[i : i + size]) for i in range(0, len(pixels), size)]
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        for batch in batches:
            encoder.restorer.posterior(encoder.restorer.posterior_mean(batch))
        seconds.append((time.process_time() - start) / len(pixels))
    return statistics.median(seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""What an evaluation costs: its job beside a plain loop, its metrics one by one, its start.

Pictures are 512 x 512: crops of photographs of scikit-image, and the same with noise.
"""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import RUNS, paired
from tests.benchmarks.models import peak_memory

SHARED = ("psnr", "ssim", "ms_ssim")
"""Metrics that torchmetrics has too and that need no weights; its LPIPS needs torchvision."""
PICTURES, SIDE = 12, 512
MANY = 48  # pictures of the command, beside which the start of Ray is small
ONE_BY_ONE = 2  # pictures by which every metric is timed, beside one that warms it up
CROPS = ("astronaut", "coffee", "retina", "rocket")


def job() -> dict[str, Any]:
    """Measure by the job and by a loop of torchmetrics, one picture at a time on one thread."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = write_pairs(Path(folder), PICTURES)
        steps = Steps()
        spent = paired(lambda: evaluated(sets, steps), lambda: plain(sets), clock=time.process_time)
        by_step = {name: seconds / (RUNS + 1) for name, seconds in steps.seconds.items()}
        spent["ours_images_per_s"] = PICTURES / spent["ours_s"]
        spent["theirs_images_per_s"] = PICTURES / spent["theirs_s"]
        return {
            "pictures": PICTURES,
            "metrics": SHARED,
            "processor_seconds": spent,
            "ours_by_step_wall_s": {name: round(seconds, 3) for name, seconds in by_step.items()},
            "share_of_the_metrics": round(
                sum(by_step[name] for name in SHARED) / by_step["all"], 3
            ),
            "memory": {
                side.__name__: peak_memory(_once, side.__name__, str(sets))
                for side in (evaluated, plain)
            },
        }


def ray() -> dict[str, Any]:
    """Measure by the command as a user starts it, with two workers, beside one thread's loop."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = write_pairs(Path(folder), MANY)
        return {
            "pictures": MANY,
            "metrics": SHARED,
            "seconds": paired(lambda: command(sets), lambda: plain(sets)),
        }


def metrics() -> dict[str, Any]:
    """Measure every metric that runs on a CPU on its own: processor seconds of a picture.

    Weights are random, of the published names and sizes; they only take time. Q-Align's 7 billion
    are left out.
    """
    import torch

    from models.metrics.catalog import METRICS

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        weights = write_weights(Path(folder))
        pictures = [torch.from_numpy(p).permute(2, 0, 1)[None].contiguous() for p in draw()]
        for name, metric in METRICS.items():
            if name == "qalign":
                continue
            identified = clocked(lambda metric=metric: metric.digest(weights))
            start = time.process_time()
            judge = metric.load(weights) if metric.kind == "image" else metric.load_set(weights)
            loaded = time.process_time() - start
            compute = judge.features if metric.kind == "set" else judge.compute
            reference = [pictures[1]] if metric.needs_reference and metric.kind == "image" else []
            compute(pictures[0], *reference)
            start = time.process_time()
            for picture in pictures[:ONE_BY_ONE]:
                compute(picture, *reference)
            spent = (time.process_time() - start) / ONE_BY_ONE
            found[name] = {
                "processor_seconds_a_picture": round(spent, 4),
                "processor_hours_for_3000": round(spent * 3000 / 3600, 2),
                "seconds_to_identify": round(identified, 2),
                "seconds_to_load": round(loaded, 2),
            }
    return found


@dataclass
class Steps:
    """Adds up how long the workers say that their steps took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, results: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass the results of units on."""
        for result in results:
            for name, seconds in result["seconds"].items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            yield result


def evaluated(sets: Path, steps: Steps | None = None) -> None:
    """Evaluate by the command's own job, without Ray, into a folder that is thrown away."""
    from tests.support.curation_jobs import InProcess
    from tests.support.evaluate_jobs import evaluate

    noted = steps or Steps()

    class Noting(InProcess):
        def run(self, *arguments: Any) -> Iterator[dict[str, Any]]:
            return noted.of(super().run(*arguments))

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as output, redirect_stdout(io.StringIO()):
        evaluate(
            output, {"ours": sets / "restored"}, Noting(), reference=sets / "hq", metrics=SHARED
        )
    noted.seconds["all"] = noted.seconds.get("all", 0.0) + time.perf_counter() - start


def plain(sets: Path) -> list[list[float]]:
    """Evaluate by a plain loop: the values of each pair, and their means printed nowhere."""
    import numpy as np
    import torch
    from PIL import Image
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    functions: Sequence[Callable[..., torch.Tensor]] = (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
        multiscale_structural_similarity_index_measure,
    )
    values = []
    for path in sorted((sets / "restored").iterdir()):
        x, y = (
            torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255
            for file in (path, sets / "hq" / path.name)
        )
        values.append([float(function(x, y, data_range=1.0)) for function in functions])
    return values


def command(sets: Path) -> None:
    """Evaluate as a user does, with two workers of Ray."""
    with tempfile.TemporaryDirectory() as output:
        options = [
            *("--restored", f"ours={sets / 'restored'}", "--reference", str(sets / "hq")),
            *("--metrics", *SHARED, "--workers", "2", "--device", "cpu", "--no-track"),
            *("-o", output),
        ]
        subprocess.run(
            [sys.executable, "-m", "pipelines.evaluate", *options], check=True, capture_output=True
        )


def _once(side: str, sets: str) -> Callable[[], object]:
    """Prepare one side for a measurement of its memory; its modules are loaded already."""
    import torch
    import torchmetrics.functional.image  # noqa: F401

    import pipelines.evaluate.job  # noqa: F401

    torch.set_num_threads(1)
    return lambda: {"evaluated": evaluated, "plain": plain}[side](Path(sets))


def draw() -> "list[Any]":
    """Crop photographs of scikit-image to uint8 [512, 512, 3], made larger where they are small."""
    import numpy as np
    from PIL import Image
    from skimage import data

    made = []
    for name in CROPS:
        whole = Image.fromarray(getattr(data, name)())
        side = min(whole.size)
        made.append(np.array(whole.crop((0, 0, side, side)).resize((SIDE, SIDE))))
    return made


def write_pairs(folder: Path, count: int) -> Path:
    """Write so many HQ pictures and their noisy copies; returns the folder of both folders."""
    import numpy as np
    from PIL import Image

    for name in ("hq", "restored"):
        (folder / name).mkdir(parents=True)
    pictures = draw()
    for number in range(count):
        rng = np.random.default_rng(number)
        hq = np.roll(pictures[number % len(pictures)], number, axis=1)
        noisy = np.clip(hq + rng.normal(0, 8, hq.shape), 0, 255).astype(np.uint8)
        Image.fromarray(hq).save(folder / "hq" / f"{number:03}.png")
        Image.fromarray(noisy).save(folder / "restored" / f"{number:03}.png")
    return folder


def write_weights(folder: Path) -> Path:
    """Write random weights of the published names and sizes for every metric but Q-Align."""
    import torch

    from models.metrics import clipiqa, deg, dinov2, dists, inception, lmd, lpips, musiq
    from models.metrics.backbones import VGG16
    from tests.support.niqe_parameters import write_niqe
    from tests.support.seeded_weights import read_keys, repeated
    from tests.test_dinov2 import facebooks_shapes

    def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in network.state_dict().items()}

    def classifier(network: torch.nn.Module, inputs: int, *places: int) -> dict[str, Any]:
        found, widths = shapes(network), (inputs, 4096, 4096, 1000)
        for place, before, behind in zip(places, widths[:-1], widths[1:], strict=True):
            found[f"classifier.{place}.weight"] = (behind, before)
            found[f"classifier.{place}.bias"] = (behind,)
        return found

    files: dict[str, dict[str, tuple[int, ...]]] = {
        clipiqa.FILES[2]: read_keys("clip_rn50"),
        lmd.FILE.name: read_keys("fan_wflw"),
        deg.FILE.name: read_keys("resnet18_110"),
        musiq.FILE: read_keys("musiq"),
        inception.CHECKPOINT: read_keys("fid_inception"),
        dinov2.CHECKPOINT: facebooks_shapes(dinov2.VIT_L14),
        lpips.AlexNet.CHECKPOINT: classifier(lpips.AlexNet(), 9216, 1, 4, 6),
        VGG16.CHECKPOINT: classifier(VGG16(), 25088, 0, 3, 6),
        dists.FILE: shapes(dists.DISTS().weights),
        **{one.file: shapes(lpips.LPIPS(net).weights) for net, one in lpips.VARIANTS.items()},
    }
    for name, keys in files.items():
        torch.save(repeated(keys, 1), folder / name)
    return write_niqe(folder)


def clocked(call: Callable[[], object]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start

"""What a restored face costs: `python -m tests.benchmarks.restore [parts|plain|job|memory|start]`.

    parts    seconds of every part against its counted operations, and the machine's ceiling
    plain    a face by `FaceRestorer` against a plain PyTorch loop over the same networks
    job      a picture of a folder by the whole job against that loop with files around it
    memory   peaks of one face, and of folders of 5 and 50
    start    modules, loading a bundle, the first face

Without a name all of them run, in six minutes, and each keeps ``results/restore_<name>.json``. Set
OMP_NUM_THREADS=1 first. Weights are random: of the small networks for 128 pixels, and of the
published sizes for 512, measured on crops of 192 pixels, because a whole face takes two minutes of
a core. `--tiny` tries the code on smaller networks, and keeps nothing.

On a GPU `tests.benchmarks.gpu` measures whole faces.
"""

import argparse
import io
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import RUNS, paired, save
from tests.benchmarks.models import peak_memory

STEPS = 25
FEW_STEPS = 5  # where what is around the networks is measured, and they only take time
SIGMA_S = 0.1


@dataclass(frozen=True)
class Sizes:
    """Which networks are measured, by their presets, and on faces of what size."""

    velocity: str
    vae: str
    predictor: str
    side: int
    """Of the faces that the model is for, in pixels."""
    crop: int
    """Side of what is measured."""


FULL = Sizes("latent-c32", "sim-vae-f8c32", "swinir_L", side=512, crop=192)
SMALL = Sizes("small-c8", "small-f4c8", "small", side=128, crop=128)
TINY = Sizes("tiny", "tiny", "tiny", side=64, crop=64)


@dataclass(frozen=True)
class Given:
    """What a bench works on."""

    folder: Path
    """For files; in `small` and `full` lie the bundles."""
    small: Sizes
    full: Sizes
    runs: int
    count: int
    """Pictures of the larger folder of `memory`."""

    @property
    def models(self) -> dict[str, tuple[Path, Sizes]]:
        """The bundles and their sizes."""
        return {name: (self.folder / name, getattr(self, name)) for name in ("small", "full")}


MEASURED = SMALL, FULL, RUNS, 50
TRIAL = TINY, TINY, 1, 10


def write_model(folder: Path, sizes: Sizes) -> None:
    """Write a bundle of networks with random weights."""
    import torch

    from models.bundle import in_memory, write_bundle
    from models.bundle_facts import BundleConfig
    from models.restorer import RestorationRule, Restorer

    torch.manual_seed(0)
    velocity, vae, predictor = networks(sizes)
    config = BundleConfig(rule=RestorationRule(sigma_s=SIGMA_S), size=sizes.side, steps=STEPS)
    write_bundle(
        folder,
        in_memory(config, velocity, Restorer(config.rule, vae=vae, predictor=predictor)),
    )


def networks(sizes: Sizes) -> tuple[Any, Any, Any]:
    """Build the velocity, the autoencoder and the predictor."""
    from models.predictor import swinir
    from models.vae import sim_vae
    from models.velocity import looformer

    predictor = replace(swinir.PRESETS[sizes.predictor], image_size=sizes.side)
    return (
        looformer.LooUFormer(looformer.PRESETS[sizes.velocity]),
        sim_vae.SimVAE(sim_vae.PRESETS[sizes.vae]),
        swinir.SwinIR(predictor),
    )


def face(sizes: Sizes, number: int = 0) -> Any:
    """Draw a picture, RGB uint8 [crop, crop, 3]."""
    import numpy as np

    from tests.conftest import picture

    return np.asarray(picture(number, sizes.crop, sizes.crop))


# --- parts ---------------------------------------------------------------------------------------


def parts(given: Given) -> dict[str, Any]:
    """Time every part of a restoration, and compare it with what it has to compute.

    The ceiling is a product of float32 matrices of 2,048, measured between the runs. A published
    face of 512 pixels is predicted from its counted operations and the rates on the crop.
    """
    return {name: _parts(*model, given.runs) for name, model in given.models.items()}


def _parts(folder: Path, sizes: Sizes, runs: int) -> dict[str, Any]:
    calls = _calls(folder, sizes)
    seconds: dict[str, list[float]] = {name: [] for name in [*calls, "ceiling"]}
    for run in range(runs + 1):  # the first is a warm-up
        for name, call in {**calls, "ceiling": _product}.items():
            start = time.process_time()
            call()
            if run:
                seconds[name].append(time.process_time() - start)
    spent = {name: statistics.median(values) for name, values in seconds.items()}
    gflops = 2 * 2048**3 / spent.pop("ceiling") / 1e9
    counted, whole = (counted_flops(sizes, side) for side in (sizes.crop, sizes.side))
    found: dict[str, Any] = {
        name: _rate(value, counted.get(name), gflops) for name, value in spent.items()
    }
    times = {name: STEPS if name == "velocity" else 1 for name in whole}
    return {
        "crop_px": sizes.crop,
        "ceiling_gflops": round(gflops, 1),
        "parts": found,
        "face": {
            "px": sizes.side,
            "tflop": sum(flops * times[name] for name, flops in whole.items()) / 1e12,
            "predicted_s": sum(
                times[name] * spent[name] * flops / counted[name] for name, flops in whole.items()
            ),
            "share_besides_networks": _besides(spent, times),
        },
    }


def _besides(spent: Mapping[str, float], times: Mapping[str, int]) -> float:
    """Return the share of a crop's time that passes outside of the networks."""
    inside = sum(spent[name] * count for name, count in times.items())
    outside = sum(value for name, value in spent.items() if name not in times)
    return outside / (inside + outside)


def _rate(seconds: float, flops: int | None, ceiling: float) -> dict[str, float]:
    """Return a part's time, and its rate where it computes what can be counted."""
    if flops is None:
        return {"cpu_s": seconds}
    rate = flops / seconds / 1e9
    return {
        "cpu_s": seconds,
        "gflop": flops / 1e9,
        "gflops": rate,
        "share_of_ceiling": rate / ceiling,
    }


def _product() -> object:
    import torch

    matrix = torch.ones(2048, 2048)
    return matrix @ matrix


def _calls(folder: Path, sizes: Sizes) -> dict[str, Callable[[], object]]:
    """Return each part of a restoration as a call, on the outputs of the parts before it."""
    import numpy as np
    import torch

    from datasets.decoding import MAX_PIXELS, decode
    from models.bundle import load_bundle
    from models.noise import NamedNoise, Purpose
    from models.ranges import uint8_to_unit, unit_to_uint8
    from pipelines.restore.outputs import png

    bundle, noise = load_bundle(folder), NamedNoise(0, ["face"])
    restorer, pixels = bundle.restorer, face(sizes)
    path = folder / "face.png"
    path.write_bytes(png(pixels, {}))
    levels = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    lq = uint8_to_unit(levels)
    mean = restorer.posterior_mean(lq)
    encoding = restorer.encode(mean, noise, Purpose.SOURCE_POSTERIOR)
    x_0 = restorer.x_0(restorer.source(encoding, noise), noise)
    image, t = restorer.image(x_0), torch.zeros(1)
    restored = np.ascontiguousarray(unit_to_uint8(image)[0].permute(1, 2, 0).numpy())

    calls = {
        "read and decode": lambda: decode(path.read_bytes(), MAX_PIXELS),
        "to floats": lambda: uint8_to_unit(levels),
        "predictor": lambda: restorer.posterior_mean(lq),
        "encode": lambda: restorer.encode(mean, noise, Purpose.SOURCE_POSTERIOR),
        "source noise": lambda: restorer.x_0(restorer.source(encoding, noise), noise),
        "velocity": lambda: bundle.velocity(x_0, t),
        "decode": lambda: restorer.image(x_0),
        "to uint8": lambda: unit_to_uint8(image).permute(0, 2, 3, 1).contiguous(),
        "PNG": lambda: png(restored, {}),
    }
    return {name: _without_gradients(call) for name, call in calls.items()}


def _without_gradients(call: Callable[[], object]) -> Callable[[], object]:
    import torch

    return torch.no_grad()(call)


def counted_flops(sizes: Sizes, side: int) -> dict[str, int]:
    """Count the operations of the parts that are networks, on an image of ``side`` pixels.

    Those of neighbourhood attention are counted by its definition, without what tiles add.
    """
    import torch

    from models.velocity.neighborhood import tiled_flops, window_flops
    from trainers.loop.cost import forward_flops

    with torch.device("meta"):
        velocity, vae, predictor = networks(sizes)
    config, cells = velocity.config, side // vae.downsample_factor
    images, latents = (1, 3, side, side), (1, config.in_channels, cells, cells)
    flops = forward_flops(lambda: velocity, latents, (1,))
    for level, kind in enumerate(config.attentions):
        if kind == "neighborhood":
            blocks = config.depths[level] * (1 if level == len(config.depths) - 1 else 2)
            axes = (cells >> level, cells >> level, config.widths[level], config.kernel_size)
            flops += blocks * (window_flops(*axes) - tiled_flops(*axes))
    return {
        "predictor": forward_flops(lambda: predictor, images),
        "encode": forward_flops(lambda: vae.encoder, images),
        "velocity": flops,
        "decode": forward_flops(lambda: vae.decoder, latents),
    }


# --- against plain PyTorch -----------------------------------------------------------------------


def plain(given: Given) -> dict[str, Any]:
    """Restore a small face by `FaceRestorer` and by a plain loop: ratio of processor time."""
    import numpy as np

    from pipelines.restore.networks import FaceRestorer

    folder, sizes = given.models["small"]
    restorer, loop, pixels = FaceRestorer(_rule(folder, STEPS)), plain_loop(folder), face(sizes)
    ours = restorer([pixels], ["face"])[0].restored
    theirs = loop(pixels, STEPS)
    apart = np.abs(ours.astype(int) - theirs.astype(int)).max()
    times = paired(
        lambda: restorer([pixels], ["face"]),
        lambda: loop(pixels, STEPS),
        given.runs,
        time.process_time,
    )
    return {"face_restorer_over_plain": times, "largest_difference_levels": int(apart)}


def _rule(folder: Path, steps: int) -> Any:
    from pipelines.restore.config import RestoreRule

    return RestoreRule(model=str(folder), steps=steps, device="cpu")


def plain_loop(folder: Path) -> Callable[[Any, int], Any]:
    """Return the shortest code that restores one face with a bundle's networks."""
    import torch

    from models.bundle import load_bundle
    from models.noise import NamedNoise, Purpose

    bundle = load_bundle(folder)
    velocity, predictor = bundle.velocity, bundle.restorer.predictor
    vae: Any = bundle.restorer.vae
    assert predictor is not None
    vae.to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def restore(pixels: Any, steps: int) -> Any:
        lq = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        z = vae.encode(predictor(lq).clamp(0, 1) * 2 - 1).mean
        noise = NamedNoise(0, ["face"]).normal(z.shape[1:], Purpose.SOURCE_NOISE)
        z = z + SIGMA_S * noise  # the same noise, so that the pictures can be compared
        for step in range(steps):
            z = z + velocity(z, torch.full((1,), step / steps)) / steps
        image = (vae.decode(z) + 1).clamp(0, 2) / 2
        return (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

    return restore


def job(given: Given) -> dict[str, Any]:
    """Compare a further picture of a folder, by the job, with one of a plain loop over files.

    A folder less a smaller one leaves the pictures alone. In one process, by processor time; and
    as a user starts it, with one worker of Ray, by the clock.
    """
    folder, sizes = given.models["small"]
    few, many = (_pictures(given.folder, sizes, count) for count in (2, 10))
    loop = plain_loop(folder)

    def files(source: Path) -> None:
        from PIL import Image

        with tempfile.TemporaryDirectory() as output:
            for path in sorted(source.iterdir()):
                restored = loop(_opened(path), FEW_STEPS)
                Image.fromarray(restored).save(Path(output, path.name))

    rows = []
    for run in range(given.runs + 1):
        row = [_timed(partial(_in_process, folder, source)) for source in (few, many)]
        row += [_timed(partial(files, source)) for source in (few, many)]
        rows += [row] if run else []
    ours = [(row[1] - row[0]) / 8 for row in rows]
    theirs = [(row[3] - row[2]) / 8 for row in rows]
    by_ray = [_by_ray(folder, few), _by_ray(folder, many)]
    return {
        "steps": FEW_STEPS,
        "job_cpu_s_a_picture": statistics.median(ours),
        "plain_cpu_s_a_picture": statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "ray": {
            "pictures": [2, 10],
            "seconds": by_ray,
            "seconds_a_picture": (by_ray[1] - by_ray[0]) / 8,
            "runs": 1,
        },
    }


def _opened(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def _timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _pictures(folder: Path, sizes: Sizes, count: int) -> Path:
    from tests.conftest import picture

    source = folder / f"pictures-{count}"
    source.mkdir(exist_ok=True)
    for number in range(count):
        picture(number, sizes.side, sizes.side).save(source / f"face-{number:02d}.png")
    return source


def _in_process(model: Path, source: Path) -> None:
    """Do the whole job without Ray, into a folder that is thrown away."""
    from pipelines.restore.config import RestoreConfig
    from pipelines.restore.job import Restoration
    from tests.support.curation_jobs import InProcess

    with tempfile.TemporaryDirectory() as output, redirect_stdout(io.StringIO()):
        config = RestoreConfig(
            input=(str(source),), output=f"{output}/out", rule=_rule(model, FEW_STEPS)
        )
        Restoration(config).run(InProcess())


def _by_ray(model: Path, source: Path) -> float:
    """Time the command with one worker, in seconds."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "pipelines.restore", "-i", str(source)]
        command += ["-o", f"{output}/out", "--model", str(model), "--steps", str(FEW_STEPS)]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--workers", "1", "--device", "cpu"], check=True, capture_output=True
        )
        return time.perf_counter() - start


# --- memory and start ----------------------------------------------------------------------------


def memory(given: Given) -> dict[str, Any]:
    """Measure the resident peaks of a process that restores: one face, folders of 5 and more."""
    found: dict[str, Any] = {
        f"one_face_{name}": peak_memory(_one_face, str(folder), sizes)
        for name, (folder, sizes) in given.models.items()
    }
    folder, sizes = given.models["small"]
    for count in (5, given.count):
        source = _pictures(given.folder, sizes, count)
        found[f"folder_of_{count}"] = peak_memory(_whole_folder, str(folder), str(source))
    return found


def _one_face(folder: str, sizes: Sizes) -> Callable[[], object]:
    """Load a bundle; the call restores one face of the model's size in one step."""
    from pipelines.restore.networks import FaceRestorer

    restorer = FaceRestorer(_rule(Path(folder), 1))
    pixels = face(replace(sizes, crop=sizes.side))
    return lambda: restorer([pixels], ["face"])


def _whole_folder(model: str, source: str) -> Callable[[], object]:
    """Load what the job imports; the call does the job in this process."""
    import pipelines.restore.job  # noqa: F401
    from tests.support.curation_jobs import InProcess  # noqa: F401

    return lambda: _in_process(Path(model), Path(source))


def start(given: Given) -> dict[str, Any]:
    """Measure what passes before the second face: modules, loading, the first face.

    Loading is compared with plain code: networks built at random, safetensors read,
    `load_state_dict`, and no digest. The page cache is warm. Processor time.
    """
    folder, _ = given.models["full"]
    fresh = [_fresh(given.models["small"]) for _ in range(given.runs)]
    ours, theirs = partial(_load, folder), partial(plain_loading, folder, given.full)
    loading = paired(ours, theirs, given.runs, time.process_time)
    loads_the_compiler = bool(max(row.pop("loads_the_compiler") for row in fresh))
    return {
        "cpu_s": {name: statistics.median(row[name] for row in fresh) for name in fresh[0]},
        "loads_the_compiler": loads_the_compiler,
        "load_full_bundle_over_plain": loading,
        "of_it_one_digest_of_all_weights_s": _digests(folder),
        "bundle_bytes": sum(path.stat().st_size for path in folder.rglob("*.safetensors")),
    }


def _fresh(model: tuple[Path, Sizes]) -> dict[str, float]:
    """Restore two faces in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_first_faces, (str(model[0]), model[1]))


def _first_faces(folder: str, sizes: Sizes) -> dict[str, float]:
    from pipelines.restore.networks import FaceRestorer

    modules = time.process_time()  # since the process began
    restorer = FaceRestorer(_rule(Path(folder), FEW_STEPS))
    loading = time.process_time() - modules
    pixels = face(sizes)
    faces = [_timed(lambda: restorer([pixels], ["face"])) for _ in range(2)]
    return {
        "modules": modules,
        "load the small bundle": loading,
        "first face": faces[0],
        "second face": faces[1],
        "loads_the_compiler": float("torch._dynamo" in sys.modules),
    }


def _load(folder: Path) -> object:
    from models.bundle import load_bundle

    return load_bundle(folder)


def plain_loading(folder: Path, sizes: Sizes) -> object:
    """Load the networks as most programs do."""
    from safetensors.torch import load_file

    built = networks(sizes)
    for name, network in zip(("velocity", "vae", "predictor"), built, strict=True):
        (path,) = (folder / name).glob("*.safetensors")
        network.load_state_dict(load_file(path))
        network.eval().requires_grad_(False)
    return built


def _digests(folder: Path) -> float:
    """Return the processor seconds of hashing all weights once."""
    from safetensors.torch import load_file

    from models.checkpoint import weights_digest

    states = [load_file(path) for path in sorted(folder.rglob("*.safetensors"))]
    return statistics.median(
        _timed(lambda: [weights_digest(state) for state in states]) for _ in range(RUNS)
    )


def _say(row: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


BENCHES: dict[str, Callable[[Given], dict[str, Any]]] = {
    "parts": parts,
    "plain": plain,
    "job": job,
    "memory": memory,
    "start": start,
}


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for, and keep it unless the networks were tiny."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", nargs="*", choices=["all", *BENCHES], default="all")
    parser.add_argument("--tiny", action="store_true", help="try the code; keep nothing")
    options = parser.parse_args(arguments)
    benches = BENCHES if "all" in options.bench else {n: BENCHES[n] for n in options.bench}
    with tempfile.TemporaryDirectory() as folder:
        given = Given(Path(folder), *TRIAL if options.tiny else MEASURED)
        for where, sizes in given.models.values():
            write_model(where, sizes)
        for name, bench in benches.items():
            measured = bench(given)
            _say({name: measured})
            if not options.tiny:
                save(f"restore_{name}", measured, "torch", "ray")
    return 0


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))

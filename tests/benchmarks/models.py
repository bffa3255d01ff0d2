"""Time and memory of the models: `python -m tests.benchmarks.models [vae|attention|degradation]`.

One function per bench, in the table at the end; without arguments all of them run. Each returns
what `harness.save` keeps as ``results/models_<name>.json``. Set OMP_NUM_THREADS=1 first: ratios on
one core are the ones that another machine can repeat.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import paired, save

MIB = 1 << 20


def peak_memory(work: Callable[..., object], *arguments: object) -> dict[str, Any]:
    """Run ``work`` once in a fresh process and measure its resident memory, in MiB.

    The kernel's own high-water mark of the process (VmHWM): everything counts, the allocator's
    slack included. ``getrusage`` would carry over the parent's peak through fork and exec.

    Args:
        work: a function of this module's top level; it builds what it needs, then returns a
            callable, and only the memory during that call counts as the peak. What that call
            returns is kept beside the memory if it is a plain dict.
        arguments: what ``work`` is called with; they travel to the process by pickle.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., Any], arguments: Sequence[object]) -> dict[str, Any]:
    call = work(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls back to what is resident now
    before = _resident("VmRSS")
    found = call()
    peak = _resident("VmHWM")
    memory = {"before_mib": before, "peak_mib": peak, "added_mib": round(peak - before, 1)}
    return memory | (found if type(found) is dict else {})


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    return round(kib * 1024 / MIB, 1)


def vae() -> dict[str, Any]:
    """Sim-VAE f8c32 against diffusers' SD-VAE f8c32: one image of 256 px there and back.

    On one thread, float32, random weights, in both memory formats; theirs is diffusers. The ratio
    of processor time is the one that other load on the machine moves least. Memory is of each in
    its own process, without the weights.
    """
    import torch

    torch.set_num_threads(1)
    measured: dict[str, Any] = {"flops_ratio": round(_vae_flops("sim") / _vae_flops("sd"), 4)}
    for layout in ("contiguous_format", "channels_last"):
        seconds: dict[str, list[float]] = {"sim": [], "diffusers": []}
        ours, theirs = (_clocked(_vae_pass(name, layout), spent) for name, spent in seconds.items())
        times = paired(ours, theirs)
        pairs = list(zip(*seconds.values(), strict=True))[1:]  # without the warm-up
        measured[layout] = {
            "time": times,
            "processor_time": {
                "ours_s": statistics.median(mine for mine, _ in pairs),
                "theirs_s": statistics.median(other for _, other in pairs),
                "ratio": statistics.median(mine / other for mine, other in pairs),
            },
            "memory": {name: peak_memory(_vae_pass, name, layout) for name in seconds},
        }
    return measured


def _clocked(call: Callable[[], object], spent: list[float]) -> Callable[[], None]:
    """Let ``call`` note the processor seconds of each run, warm-up included."""

    def clocked() -> None:
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)

    return clocked


def _vae_pass(network: str, layout: str) -> Callable[[], object]:
    """Build a network and return its encode and decode of one image."""
    import torch

    from models.vae.sim_vae import PRESETS, SimVAE

    torch.set_num_threads(1)
    memory_format = getattr(torch, layout)
    build = _diffusers_vae if network == "diffusers" else lambda: SimVAE(PRESETS["sim-vae-f8c32"])
    autoencoder = build().eval().to(memory_format=memory_format)
    images = torch.rand(1, 3, 256, 256).to(memory_format=memory_format) * 2 - 1

    @torch.no_grad()
    def call() -> object:
        return autoencoder(images)

    return call


def _diffusers_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=32,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def _vae_flops(design: str) -> float:
    """Count one image of 256 px there and back, without computing it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from models.vae.sim_vae import PRESETS, SimVAE

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        SimVAE(PRESETS[f"{design}-vae-f8c32"])(torch.zeros(1, 3, 256, 256))
    return float(counter.get_total_flops())


def degradation() -> dict[str, Any]:
    """Batched degradation against one image at a time; see `tests.benchmarks.degradation`."""
    from tests.benchmarks.degradation import degradation as measure

    return measure()


def attention() -> dict[str, Any]:
    """Neighbourhood attention against dense attention; see `tests.benchmarks.attention`."""
    from tests.benchmarks.attention import attention as measure

    return measure()


BENCHES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "attention": attention,
    "degradation": degradation,
    "vae": vae,
}


def main(arguments: Sequence[str]) -> int:
    """Run the benches named on the command line, or all, and say where each result lies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", nargs="*", choices=["all", *BENCHES], default="all")
    names = parser.parse_args(arguments).bench
    for name in BENCHES if "all" in names else names:
        path = save(f"models_{name}", BENCHES[name](), "torch", "diffusers")
        sys.stdout.write(f"{path}\n{path.read_text()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

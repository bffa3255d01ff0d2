"""Restoring: the sampler, whole faces, which kernels attention takes, and the cost of precision."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from models.noise import NamedNoise
from models.restorer import RestorationRule, Restorer
from tests.benchmarks.gpu import networks
from tests.benchmarks.gpu.compiling import compile_blocks
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.networks import Sizes, frozen, pictures
from tests.benchmarks.gpu.rows import Found, Row
from tests.benchmarks.restore import counted_flops

PAPER_MS = 574.5  # of a face on an A100 (Table 5)
ATTENTION = ("attention", "flash", "fmha", "sdpa", "softmax", "mha")  # in names of kernels
SECONDS = {"eager": 4.0, "compiled": 25.0}
LONGEST = 8  # kernels that are named for each network
Part = Callable[[Tensor], Tensor]


def sampler_rows(sizes: Sizes) -> list[Row]:
    """Return the velocities of a restoration, at both batches, in each way."""
    return [
        Row(
            f"sampler/{mode}/batch-{batch}",
            SECONDS[mode],
            functools.partial(_sampler, sizes, mode, batch),
            memory_gb=4.0,
        )
        for mode in ("eager", "compiled")
        for batch in sizes.faces
    ]


def face_rows(sizes: Sizes) -> list[Row]:
    """Return whole restorations, from floats on the device to floats on it."""
    return [
        Row(
            f"face/{mode}/batch-{batch}",
            SECONDS[mode] + 6.0,
            functools.partial(_face, sizes, mode, batch),
            memory_gb=20.0,
        )
        for mode in ("eager", "compiled")
        for batch in sizes.faces
    ]


def attention_rows(sizes: Sizes) -> list[Row]:
    """Return a profile of each network with attention: which kernels, how long."""
    return [
        Row(f"kernels/{name}", 5.0, functools.partial(_kernels, build, inputs, sizes), 20.0)
        for name, build, inputs in (
            ("looformer", networks.velocity, _latents),
            ("hdit", networks.pixel_velocity, _noisy_pictures),
            ("swinir", lambda sizes: networks.predictor(sizes, sizes.side), _lq),
        )
    ]


def precision_rows(sizes: Sizes) -> list[Row]:
    """Return encode, decode and the predictor in each precision, and how far each is from fp32."""
    return [
        Row(
            f"precision/{name}",
            6.0,
            functools.partial(_precisions, name, part, sizes),
            memory_gb=30.0,
        )
        for name, part in (
            ("encode", _encoding),
            ("decode", _decoding),
            ("predictor", _predicting),
        )
    ]


# --- the sampler and whole faces -----------------------------------------------------------------


def _sampler(sizes: Sizes, mode: str, batch: int, device: Device) -> Found:
    velocity = frozen(device.seeded(lambda: networks.velocity(sizes)))
    shape = networks.latent_shape(sizes, batch, sizes.side)
    x_0, restorer = networks.drawn(device, *shape), Restorer(RestorationRule())
    if mode == "compiled":
        compile_blocks(velocity, device.compiler)
    with device.computing("bf16"):
        timing = device.timed(lambda: restorer.solve(velocity, x_0, None, sizes.steps))
    flops = sizes.steps * batch * counted_flops(sizes, sizes.side)["velocity"]
    return device.rated(timing, flops, batch)


def _face(sizes: Sizes, mode: str, batch: int, device: Device) -> Found:
    velocity, restorer = _bundle(sizes, device)
    if mode == "compiled":
        for network in (velocity, restorer.vae, restorer.predictor):
            assert network is not None
            compile_blocks(network, device.compiler)
    lq = pictures(batch, sizes.side).to(device.torch)
    noise = NamedNoise(0, [str(number) for number in range(batch)])
    with device.computing("bf16"):
        timing = device.timed(lambda: restorer.restore(velocity, lq, noise, steps=sizes.steps))
    counted = counted_flops(sizes, sizes.side)
    flops = sum(n * (sizes.steps if part == "velocity" else 1) for part, n in counted.items())
    found = device.rated(timing, batch * flops, batch)
    return {**found, "times_as_fast_as_the_paper": PAPER_MS * batch / timing["ms"]}


def _bundle(sizes: Sizes, device: Device) -> tuple[nn.Module, Restorer]:
    def build() -> list[Any]:
        whole = networks.predictor(sizes, sizes.side)
        return [frozen(n) for n in (networks.velocity(sizes), networks.autoencoder(sizes), whole)]

    velocity, vae, predictor = device.seeded(build)
    return velocity, Restorer(RestorationRule(), vae=vae, predictor=predictor)


# --- the kernels of attention --------------------------------------------------------------------


def _latents(sizes: Sizes, device: Device) -> tuple[Tensor, ...]:
    batch = sizes.flow_batches[-1]
    shape = networks.latent_shape(sizes, batch, sizes.side)
    return networks.drawn(device, *shape), torch.full((batch,), 0.5, device=device.torch)


def _noisy_pictures(sizes: Sizes, device: Device) -> tuple[Tensor, ...]:
    images = networks.drawn(device, 1, 3, sizes.hdit_side, sizes.hdit_side)
    return images, torch.full((1,), 0.5, device=device.torch)


def _lq(sizes: Sizes, device: Device) -> tuple[Tensor, ...]:
    return (pictures(2, sizes.side).to(device.torch),)


def _kernels(
    build: Callable[[Sizes], nn.Module],
    inputs: Callable[[Sizes, Device], tuple[Tensor, ...]],
    sizes: Sizes,
    device: Device,
) -> Found:
    """Profile a forward and backward pass in bfloat16.

    Returns:
        How often each form of attention was called (``aten::``, forward and backward), the CUDA
        kernels whose names are those of attention, and the kernels that took longest; each with
        its calls, and on a GPU with its share of the device's time.
    """
    network, given = device.seeded(lambda: build(sizes)), inputs(sizes, device)

    def both() -> None:
        with device.computing("bf16"):
            loss = network(*given).square().mean()
        loss.backward()

    both()  # loads kernels
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device.is_cuda
    with profile(activities=activities) as profiled:
        both()
        device.wait()
    events = profiled.events() or []
    called = Counter(e.name for e in events if e.name.startswith("aten::_scaled_dot_product"))
    spent = Counter[str]()
    calls = Counter[str]()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name] += event.device_time
            calls[event.name] += 1
    attention = (name for name in spent if any(word in name.lower() for word in ATTENTION))
    return {
        "attention": dict(called),
        "attention_kernels": _told(attention, spent, calls),
        "longest_kernels": _told((name for name, _ in spent.most_common(LONGEST)), spent, calls),
        "kernels": calls.total(),
        "device_ms": spent.total() / 1e3,
    }


def _told(
    names: Iterable[str], spent: Counter[str], calls: Counter[str]
) -> dict[str, dict[str, float]]:
    total = spent.total()
    return {
        name[:120]: {"calls": calls[name], "share": round(spent[name] / total, 4)} for name in names
    }


# --- precision -----------------------------------------------------------------------------------


def _precisions(
    name: str, part: Callable[[Sizes, Device], tuple[Part, Tensor]], sizes: Sizes, device: Device
) -> Found:
    """Time a part in each precision, and compare what it gives with fp32's."""
    (call, given), flops = part(sizes, device), counted_flops(sizes, sizes.side)[name]
    found: Found = {"batch": len(given)}
    reference: Tensor | None = None
    for precision in ("fp32", "tf32", "bf16"):
        with torch.no_grad(), device.computing(precision):
            output = call(given).float()
            timing = device.timed(functools.partial(call, given))
        reference = output if reference is None else reference
        apart = (output - reference).norm() / reference.norm()
        rated = device.rated(timing, flops * len(given), len(given))
        found[precision] = {**rated, "relative_difference": float(apart)}
        if output.shape[1] == 3:  # pictures in a range of 2, or of 1
            found[precision]["psnr_against_fp32"] = _psnr(output, reference)
    return found


def _psnr(one: Tensor, other: Tensor) -> float | None:
    """Return the PSNR in dB over the reference's own range; None of equal pictures."""
    error = (one - other).square().mean()
    span = other.max() - other.min()
    return float(10 * torch.log10(span.square() / error)) if error else None


def _encoding(sizes: Sizes, device: Device) -> tuple[Part, Tensor]:
    vae = _vae(sizes, device)
    images = pictures(sizes.encoded, sizes.side).to(device.torch) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda given: vae.encode(given).mean, images


def _decoding(sizes: Sizes, device: Device) -> tuple[Part, Tensor]:
    vae, shape = _vae(sizes, device), networks.latent_shape(sizes, 1, sizes.side)
    latents = networks.drawn(device, sizes.encoded, *shape[1:])
    return vae.decode, latents.contiguous(memory_format=torch.channels_last)


def _predicting(sizes: Sizes, device: Device) -> tuple[Part, Tensor]:
    predictor = frozen(device.seeded(lambda: networks.predictor(sizes, sizes.side)))
    images = pictures(sizes.predicted, sizes.side).to(device.torch)
    return predictor, images


def _vae(sizes: Sizes, device: Device) -> Any:
    return frozen(device.seeded(lambda: networks.autoencoder(sizes)))

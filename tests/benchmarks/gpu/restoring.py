"""Restoring: the sampler, whole faces, which kernels attention takes, and the cost of precision."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from models.half import cast_weights
from models.noise import NamedNoise
from models.replay import Replayed
from models.restorer import RestorationRule, Restorer
from tests.benchmarks import restore
from tests.benchmarks.gpu import networks
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.networks import Sizes, frozen, pictures
from tests.benchmarks.gpu.rows import Found, Row

PAPER_MS = 574.5  # of a face on an A100 (Table 5)
ATTENTION = ("attention", "flash", "fmha", "sdpa", "softmax", "mha")  # in names of kernels
WAYS = (  # of running the velocity network; `pipelines.restore` has the first and the last two
    "eager",  # autocast casts the weights at every evaluation
    "cast",  # weights are cast once
    "graph",  # and an evaluation is replayed from a CUDA graph
    "compiled",  # and its blocks are compiled
)
SECONDS = {"eager": 4.0, "cast": 3.0, "graph": 4.0, "compiled": 25.0}
counted_flops = functools.cache(restore.counted_flops)
LONGEST = 8  # kernels that are named for each network
Part = Callable[[Tensor], Tensor]


def sampler_rows(sizes: Sizes) -> list[Row]:
    """Return the velocities of a restoration, at both batches, in each way."""
    return [
        Row(
            f"sampler/{way}/batch-{batch}",
            SECONDS[way],
            functools.partial(_sampler, sizes, way, batch),
            memory_gb=4.0,
        )
        for way in WAYS
        for batch in sizes.faces
    ]


def face_rows(sizes: Sizes) -> list[Row]:
    """Return whole restorations, from floats on the device to floats on it."""
    return [
        Row(
            f"face/{way}/batch-{batch}",
            SECONDS[way] + 5.0,
            functools.partial(_face, sizes, way, batch),
            memory_gb=20.0,
        )
        for way in WAYS
        if way != "cast"
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


def _sampler(sizes: Sizes, way: str, batch: int, device: Device) -> Found:
    velocity = frozen(device.seeded(lambda: networks.velocity(sizes)))
    x_0 = networks.drawn(device, *networks.latent_shape(sizes, batch, sizes.side))
    restorer = Restorer(RestorationRule())
    with device.computing("bf16"):
        reference = restorer.solve(velocity, x_0, None, sizes.steps)
        prepared = _prepared(velocity, way, device)
        timing = device.timed(lambda: restorer.solve(prepared, x_0, None, sizes.steps))
        x_1 = restorer.solve(prepared, x_0, None, sizes.steps)
    flops = sizes.steps * batch * counted_flops(sizes, sizes.side)["velocity"]
    apart = float((x_1 - reference).norm() / reference.norm())
    return {**device.rated(timing, flops, batch), "relative_difference_from_eager": apart}


def _prepared(velocity: nn.Module, way: str, device: Device) -> nn.Module:
    """Return a velocity network in the form in which `WAYS` has it."""
    if way != "eager":
        cast_weights(velocity, torch.bfloat16)
    if way == "compiled":
        device.compile(velocity)
    if way not in ("graph", "compiled"):
        return velocity
    # without a GPU there is nothing that records: the computation itself is what repeats it
    return Replayed(velocity) if device.is_cuda else Replayed(velocity, lambda compute: compute)


def _face(sizes: Sizes, way: str, batch: int, device: Device) -> Found:
    def build() -> list[Any]:
        whole = networks.predictor(sizes, sizes.side)
        return [frozen(n) for n in (networks.velocity(sizes), networks.autoencoder(sizes), whole)]

    velocity, vae, predictor = device.seeded(build)
    velocity = _prepared(velocity, way, device)
    for network in (vae, predictor) if way != "eager" else ():
        cast_weights(network, torch.bfloat16)
        if way == "compiled":
            device.compile(network)
    rule = RestorationRule(precision="bfloat16", predictor_precision="bfloat16")
    restorer = Restorer(rule, vae=vae, predictor=predictor)
    lq = pictures(batch, sizes.side).to(device.torch)
    noise = NamedNoise(0, [str(number) for number in range(batch)])
    with device.computing("bf16"):
        timing = device.timed(lambda: restorer.restore(velocity, lq, noise, steps=sizes.steps))
    counted = counted_flops(sizes, sizes.side)
    flops = sum(n * (sizes.steps if part == "velocity" else 1) for part, n in counted.items())
    found = device.rated(timing, batch * flops, batch)
    return {**found, "times_as_fast_as_the_paper": PAPER_MS * batch / timing["ms"]}


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
        How often each form of attention was called (``aten::``, forward and backward). On a GPU
        ``ms``, the time of all kernels without what lies between them, how many there were, and
        those whose names are of attention or that took longest, with calls and shares of the time.
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
            spent[event.name] += event.time_range.elapsed_us()
            calls[event.name] += 1
    attention = (name for name in spent if any(word in name.lower() for word in ATTENTION))
    timed = {"ms": spent.total() / 1e3} if device.is_cuda else {}
    return {
        "batch": len(given[0]),
        **timed,
        "attention": dict(called),
        "attention_kernels": _told(attention, spent, calls),
        "longest_kernels": _told((name for name, _ in spent.most_common(LONGEST)), spent, calls),
        "kernels": calls.total(),
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

"""What the device does at most, and the one kernel whose memory layout is undecided."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.velocity import looformer
from tests.benchmarks.gpu import networks
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.networks import Sizes
from tests.benchmarks.gpu.rows import Found, Row

MATRIX, MEMORY, LAUNCH = "ceilings/matrix", "ceilings/memory", "ceilings/launch"
SAID = {  # the row and the value that says a ceiling, and its unit
    "flops": (MATRIX, "bf16_tflops", 1e12),
    "bandwidth": (MEMORY, "tb_per_s", 1e12),
    "launch": (LAUNCH, "eager_us", 1e-6),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def rows(sizes: Sizes) -> list[Row]:
    """Return the ceilings, by which later rows are told, and the depthwise convolutions."""
    return [
        Row(MATRIX, 3.0, functools.partial(_matrix, sizes), memory_gb=2.0),
        Row(MEMORY, 1.0, functools.partial(_memory, sizes), memory_gb=6.0),
        Row(LAUNCH, 2.0, functools.partial(_launch, sizes)),
        *(
            Row(
                f"depthwise/{channels}-channels-{side}-px",
                2.0,
                functools.partial(_depthwise, sizes.flow_batches[0], channels, side),
                memory_gb=8.0,
            )
            for channels, side in depthwise_sizes(sizes)
        ),
    ]


def remember(found: Mapping[str, Found], device: Device) -> None:
    """Take the ceilings from the rows that have measured them."""
    for name, (row, value, unit) in SAID.items():
        if value in found.get(row, {}):
            setattr(device.ceilings, name, found[row][value] * unit)


def _matrix(sizes: Sizes, device: Device) -> Found:
    """Multiply square matrices of random numbers: zeros would draw less power and run faster."""
    found: Found = {}
    for precision in ("bf16", "tf32", "fp32"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = networks.drawn(device, 2, sizes.matrix, sizes.matrix).to(dtype)
        with device.computing("tf32" if precision == "tf32" else "fp32"):
            timing = device.timed(functools.partial(torch.mm, a, b))
        found[f"{precision}_tflops"] = 2 * sizes.matrix**3 / timing["ms"] / 1e9
    return {"side": sizes.matrix, **found}


def _memory(sizes: Sizes, device: Device) -> Found:
    source = networks.drawn(device, sizes.copied // 4)
    target = torch.empty_like(source)
    timing = device.timed(lambda: target.copy_(source))
    return {"copied_bytes": sizes.copied, "tb_per_s": 2 * sizes.copied / timing["ms"] / 1e9}


def _launch(sizes: Sizes, device: Device) -> Found:
    """Add one to one number, many times: by the host, and on a GPU from a captured graph."""
    number = torch.zeros(1, device=device.torch)

    def many() -> None:
        for _ in range(sizes.launches):
            number.add_(1)

    eager = device.timed(many)["ms"] * 1e3 / sizes.launches
    found = {"launches": sizes.launches, "eager_us": eager}
    if device.is_cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            many()
        found["graph_us"] = device.timed(graph.replay)["ms"] * 1e3 / sizes.launches
    return found


def depthwise_sizes(sizes: Sizes) -> list[tuple[int, int]]:
    """Return channels and side of each convolution per channel of the velocity network of latents.

    At each level one is behind the projection to queries, keys and values, and one behind that of
    the feed-forward layer to its two halves.
    """
    config = looformer.PRESETS[sizes.velocity]
    *_, side = networks.latent_shape(sizes, 1, sizes.side)
    return [
        (channels, side >> level)
        for level, width in enumerate(config.widths)
        for channels in (3 * width, 2 * looformer._hidden(width, config.ff_ratio))
    ]


def _depthwise(batch: int, channels: int, side: int, device: Device) -> Found:
    """Convolve each channel 3 x 3 in bfloat16, in both layouts."""
    found: dict[str, Any] = {"batch": batch, "map_bytes": 2 * batch * channels * side**2}
    outputs = {}
    for name, layout in LAYOUTS.items():
        layer = device.seeded(lambda: nn.Conv2d(channels, channels, 3, 1, 1, groups=channels))
        layer.to(torch.bfloat16, memory_format=layout)
        maps = networks.drawn(device, batch, channels, side, side).to(torch.bfloat16)
        maps = maps.contiguous(memory_format=layout)
        found[name] = _both_ways(device, layer, maps, found["map_bytes"])
        outputs[name] = layer(maps).detach()
    one, other = (outputs[name].float() for name in LAYOUTS)
    found["layouts_apart"] = float((one - other).norm() / one.norm())
    found["channels_last_over_contiguous"] = {
        way: found["channels_last"][way] / found["contiguous"][way]
        for way in ("forward_ms", "forward_and_backward_ms")
    }
    return found


def _both_ways(
    device: Device, layer: Callable[[Tensor], Tensor], maps: Tensor, size: int
) -> dict[str, float]:
    with torch.no_grad():
        forward = device.timed(lambda: layer(maps))["ms"]
    maps = maps.detach().requires_grad_()

    def both() -> None:
        maps.grad = None
        layer(maps).backward(maps.detach())  # a gradient in the same layout

    times = {"forward_ms": forward, "forward_and_backward_ms": device.timed(both)["ms"]}
    if device.ceilings.bandwidth:  # read once, written once
        times["forward_share_of_bandwidth"] = 2 * size / forward * 1e3 / device.ceilings.bandwidth
    return times

"""Every network, forward and backward: the device against a CPU, and bfloat16 against float32.

Weights and inputs are drawn on the CPU and are the same everywhere. What is differentiated is a sum
of the output under fixed random weights, by the first input and by all parameters that are trained.

A relative difference is |a - b| / |b| by the Euclidean norm, of a whole output, of all gradients
together, and of each gradient by itself. Where a gradient is next to nothing, as that of a key's
bias, which no softmax sees, its own norm would say nothing: the norm of as many average elements of
all gradients, times `FLOOR`, takes its place where it is larger.
"""

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.benchmarks.gpu import networks
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.networks import Sizes, normal, pictures
from tests.benchmarks.gpu.rows import Found, Row

FLOOR = 0.1
CPU = Device(torch.device("cpu"))


class Tolerance(NamedTuple):
    """The largest relative differences that pass."""

    output: float
    gradients: float
    """Of all together."""
    worst: float
    """Of any one."""


# float32 differs by the order of sums. bfloat16 keeps 8 bits, 0.4 %: on a CPU, these networks at
# full width differ by 0.003 to 0.012 in the output, 0.003 to 0.014 in all gradients, 0.14 in one.
# ReLU, L1 and maximum pooling have kinks, at which rounding makes another gradient of a value next
# to nothing: there a CPU's gradients differ by 0.12 (SwinIR) to 0.32 (VGG).
SMOOTH = {"fp32": Tolerance(1e-4, 1e-3, 1e-2), "bf16": Tolerance(0.03, 0.05, 0.3)}
KINKED = {"fp32": Tolerance(1e-4, 1e-2, 5e-2), "bf16": Tolerance(0.03, 0.5, 0.5)}


@dataclass(frozen=True)
class Subject:
    """A network and what it is asked."""

    name: str
    build: Callable[[Sizes], nn.Module]
    inputs: Callable[[Sizes], tuple[Tensor, ...]]
    """On the CPU; the first is differentiated by."""
    call: Callable[..., Tensor] = lambda network, *inputs: network(*inputs)
    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: SMOOTH)
    """By precision."""
    seconds: float = 3.0
    """Of the comparison with a CPU of 16 cores."""


class Pass(NamedTuple):
    """What a forward and backward pass gave, float32 on the CPU."""

    output: Tensor
    gradients: dict[str, Tensor]


def rows(sizes: Sizes) -> list[Row]:
    """Return two rows for each network; the comparisons with the CPU, which find bugs, first."""
    against_cpu = [
        Row(f"agreement/{subject.name}/fp32", subject.seconds, _against_cpu(subject, sizes))
        for subject in SUBJECTS
    ]
    of_precisions = [
        Row(f"agreement/{subject.name}/bf16", 2.0, _of_precisions(subject, sizes))
        for subject in SUBJECTS
    ]
    return against_cpu + of_precisions


def _against_cpu(subject: Subject, sizes: Sizes) -> Callable[[Device], Found]:
    def measure(device: Device) -> Found:
        network, inputs = _drawn(subject, sizes)
        reference = passed(subject, network, inputs, CPU, "fp32")
        mine = passed(subject, network, inputs, device, "fp32")
        return compared(mine, reference, subject.tolerances["fp32"])

    return measure


def _of_precisions(subject: Subject, sizes: Sizes) -> Callable[[Device], Found]:
    def measure(device: Device) -> Found:
        network, inputs = _drawn(subject, sizes)
        reference = passed(subject, network, inputs, device, "fp32")
        mine = passed(subject, network, inputs, device, "bf16")
        return compared(mine, reference, subject.tolerances["bf16"])

    return measure


def _drawn(subject: Subject, sizes: Sizes) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return CPU.seeded(lambda: subject.build(sizes)), subject.inputs(sizes)


def passed(
    subject: Subject, network: nn.Module, inputs: Sequence[Tensor], device: Device, precision: str
) -> Pass:
    """Run a network forward and backward on a device, in ``fp32`` or ``bf16``."""
    there = copy.deepcopy(network).to(device.torch)
    first, *others = (value.to(device.torch) for value in inputs)
    first.requires_grad_()
    trained = {n: p for n, p in there.named_parameters() if p.requires_grad}
    with device.computing(precision):
        output = subject.call(there, first, *others).float()
    weights = normal(*output.shape, seed=1).to(output)
    found = torch.autograd.grad((output * weights).sum(), [first, *trained.values()])
    named = zip(["the input", *trained], found, strict=True)
    return Pass(output.detach().cpu(), {name: value.float().cpu() for name, value in named})


def compared(mine: Pass, reference: Pass, tolerance: Tolerance) -> Found:
    """Compare two passes, and judge how far they are apart."""
    output, far = _apart(mine.output, reference.output), mine.output - reference.output
    names = list(reference.gradients)
    whole = torch.cat([reference.gradients[name].flatten() for name in names])
    other = torch.cat([mine.gradients[name].flatten() for name in names])
    average = FLOOR * whole.square().mean().sqrt().item()
    each = {
        name: _apart(mine.gradients[name], value, average * value.numel() ** 0.5)
        for name, value in reference.gradients.items()
    }
    nan = [name for name in names if math.isnan(each[name])]  # `max` may pass over them
    worst = nan[0] if nan else max(names, key=each.__getitem__)
    found = {"output": output, "gradients": _apart(other, whole), "worst": each[worst]}
    within = {name: value <= getattr(tolerance, name) for name, value in found.items()}
    return {
        "status": "ok" if all(within.values()) else "outside tolerance",
        "outside": [name for name, is_within in within.items() if not is_within],
        "output": output,
        "output_largest": _share(far.abs().max(), reference.output.abs().max()),
        "gradients": found["gradients"],
        "gradients_mean": statistics.fmean(each.values()),
        "gradients_worst": each[worst],
        "worst_gradient": worst,
        "tolerance": tolerance._asdict(),
    }


def _apart(mine: Tensor, reference: Tensor, least: float = 0.0) -> float:
    """Return |mine - reference| over the norm of the reference, or ``least`` if that is more."""
    norm = torch.linalg.vector_norm(reference).clamp(min=least)
    return _share(torch.linalg.vector_norm(mine - reference), norm)


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if part else 0.0


# --- the networks --------------------------------------------------------------------------------


def _latents_and_time(sizes: Sizes) -> tuple[Tensor, ...]:
    side = max(sizes.side, sizes.agreeing_side)  # 64 x 64 cells, where neighbourhoods have borders
    return normal(*networks.latent_shape(sizes, 2, side)), torch.tensor([0.3, 0.8])


def _pixels_and_time(sizes: Sizes) -> tuple[Tensor, ...]:
    return pictures(2, sizes.agreeing_side) * 2 - 1, torch.tensor([0.3, 0.8])


def _pictures(sizes: Sizes) -> tuple[Tensor, ...]:
    return (pictures(2, sizes.agreeing_side),)


def _images(sizes: Sizes) -> tuple[Tensor, ...]:
    return (pictures(2, sizes.agreeing_side) * 2 - 1,)


def _pairs(sizes: Sizes) -> tuple[Tensor, ...]:
    return tuple(pictures(2, sizes.agreeing_side, seed) * 2 - 1 for seed in (0, 1))


def he(network: nn.Module) -> nn.Module:
    """Draw the weights of a network of ReLUs so that features keep their variance (He 2015)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return networks.frozen(network)


def _vgg(_: Sizes) -> nn.Module:
    from models.losses import PerceptualLoss
    from models.metrics.backbones import VGG19

    return he(PerceptualLoss(VGG19()))


def _lpips(_: Sizes) -> nn.Module:
    from models.metrics.lpips import LPIPS

    model = he(LPIPS("alex"))
    for name, value in model.named_parameters():
        if name.startswith("weights"):
            nn.init.uniform_(value)
    return model


def _tower(sizes: Sizes) -> nn.Module:
    """Build two layers of Q-Align's eye, of its width at full size."""
    from models.qalign.vision import VisionConfig, VisionTower

    narrow: dict[str, Any] = {} if sizes is networks.FULL else {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4
    }  # fmt: skip
    tower = VisionTower(VisionConfig(image_size=112, num_hidden_layers=2, **narrow))
    for name, value in tower.named_parameters():
        if name.endswith(("cls_token", "position_embedding")):
            nn.init.normal_(value, std=0.02)
    return tower


def _half(name: str) -> Callable[[Sizes], nn.Module]:
    """Return what builds the autoencoder with one half to train, the encoder or the decoder."""

    def build(sizes: Sizes) -> nn.Module:
        vae = networks.autoencoder(sizes).requires_grad_(False)
        vae.get_submodule(name).requires_grad_(True)
        return vae

    return build


def _encode(vae: Any, images: Tensor) -> Tensor:
    return torch.cat(vae.encode(images.contiguous(memory_format=torch.channels_last)), dim=1)


SUBJECTS = (
    Subject("looformer", networks.velocity, _latents_and_time, seconds=8.0),
    Subject("hdit", networks.pixel_velocity, _pixels_and_time, seconds=5.0),
    Subject("vae-encoder", _half("encoder"), _images, _encode, seconds=4.0),
    Subject(
        "vae-decoder",
        _half("decoder"),
        lambda sizes: (normal(*networks.latent_shape(sizes, 2, sizes.agreeing_side)),),
        lambda vae, latents: vae.decode(latents),
        seconds=5.0,
    ),
    Subject(
        "swinir",
        lambda sizes: networks.predictor(sizes, sizes.agreeing_side),
        _pictures,
        tolerances=KINKED,
    ),
    Subject("vgg-loss", _vgg, _pairs, lambda loss, *pair: loss(*pair).reshape(1), KINKED),
    Subject("lpips", _lpips, _pairs, tolerances=KINKED),
    Subject("qalign-tower", _tower, lambda _: (normal(2, 3, 112, 112),)),
)

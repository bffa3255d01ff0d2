"""The passes of the full-size networks whose kernels on CUDA are counted, as the programs run them.

Each is built on the meta device, where weights and activations take no memory. The counts that are
allowed stand in `tests/fixtures/cuda_counts.tsv`. After a change that is meant,

    python -m tests.support.counted_passes "why the counts changed"

renews the rows that differ, and puts the reason beside them.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.losses import PerceptualLoss, SimVAELoss, SimVAELossConfig
from models.metrics.backbones import VGG19
from models.predictor import swinir
from models.rectified_flow import flow_matching_loss, interpolate
from models.restorer import RestorationRule, Restorer
from models.vae import sim_vae
from models.velocity import hdit, looformer
from tests.support.cuda_counts import Counts, Traced, traced
from trainers.recipes.vae import Reconstruction

Pass = tuple[nn.Module, Callable[[], object]]
"""A network, and a call that runs it."""


@dataclass(frozen=True, slots=True)
class CountedPass:
    """A pass.

    Attributes:
        title: what a reader calls it.
        prepare: builds the network and its inputs on the current device.
        repeats: how often the program runs it for what ``title`` says.
        is_guarded: its counts are in the table, and no other pass has the same.
    """

    title: str
    prepare: Callable[[], Pass]
    repeats: int = 1
    is_guarded: bool = True

    def traced(self) -> Traced:
        """Count its kernels under autocast in bfloat16."""
        with torch.device("meta"):
            network, run = self.prepare()
        return traced(functools.partial(in_bf16, run), network)


def in_bf16(run: Callable[[], object]) -> None:
    """Run forward under autocast, and backward outside it where the result is a loss."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = run()
    if isinstance(loss, Tensor) and loss.requires_grad and not loss.ndim:
        loss.backward()


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def velocity(batch: int) -> Pass:
    """One step of Euler's method, as `Restorer.solve` makes it."""
    network = _frozen(looformer.LooUFormer(looformer.PRESETS["latent-c32"]))
    restorer = Restorer(RestorationRule(precision="bfloat16"))
    x_0 = torch.empty(batch, 32, 64, 64)
    return network, lambda: restorer.solve(network, x_0, None, steps=1)


def flow_step(batch: int) -> Pass:
    """A training step of the latent flow, from x_0, x_1 and t on."""
    network = looformer.LooUFormer(looformer.PRESETS["latent-c32"])
    x_0, x_1, t = torch.empty(batch, 32, 64, 64), torch.empty(batch, 32, 64, 64), torch.empty(batch)

    def run() -> Tensor:
        return flow_matching_loss(network(interpolate(x_0, x_1, t), t), x_0, x_1)

    return network, run


def encoding(batch: int) -> Pass:
    """Images of 512 pixels to the posteriors of Sim-VAE."""
    network = _frozen(sim_vae.SimVAE(sim_vae.preset("sim-vae-f8c32")))
    restorer = Restorer(RestorationRule(precision="bfloat16"), vae=network)
    images = torch.empty(batch, 3, 512, 512)
    return network, lambda: restorer.posterior(images)


def decoding(batch: int) -> Pass:
    """Latents of Sim-VAE to images of 512 pixels."""
    network = _frozen(sim_vae.SimVAE(sim_vae.preset("sim-vae-f8c32")))
    restorer = Restorer(RestorationRule(precision="bfloat16"), vae=network)
    latents = torch.empty(batch, 32, 64, 64)
    return network, lambda: restorer.image(latents)


def vae_step(batch: int) -> Pass:
    """A training step of Sim-VAE on crops of 256 pixels, the loss by VGG19 included."""
    network = Reconstruction(sim_vae.SimVAE(sim_vae.preset("sim-vae-f8c32")))
    loss = SimVAELoss(SimVAELossConfig(), PerceptualLoss(VGG19()))
    images = torch.empty(batch, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    noise = torch.empty(batch, 32, 32, 32)

    def run() -> Tensor:
        reconstruction, mean, logvar = network(images, noise)
        return loss(reconstruction, images, mean, logvar).total

    return nn.ModuleList([network, loss]), run


def pixel_velocity(batch: int) -> Pass:
    """One evaluation of PMRF's velocity at 512 pixels."""
    network = _frozen(hdit.HDiT(hdit.PRESETS["pmrf-512"]))
    x_t, t = torch.empty(batch, 3, 512, 512), torch.empty(batch)
    return network, lambda: network(x_t, t)


def posterior_mean(batch: int) -> Pass:
    """The predictor on images of 512 pixels."""
    network = _frozen(swinir.SwinIR(swinir.preset("swinir_L")))
    lq = torch.empty(batch, 3, 512, 512)
    return network, lambda: network(lq)


PASSES = {
    "velocity": CountedPass(
        "25 velocity evaluations, batch 1", functools.partial(velocity, 1), repeats=25
    ),
    "flow-step": CountedPass("LooUFormer step, batch 64", functools.partial(flow_step, 64)),
    "flow-step-8": CountedPass(
        "LooUFormer step, batch 8", functools.partial(flow_step, 8), is_guarded=False
    ),
    "encode": CountedPass("Sim-VAE encode, 512 px, batch 16", functools.partial(encoding, 16)),
    "decode": CountedPass("Sim-VAE decode, 512 px, batch 16", functools.partial(decoding, 16)),
    "vae-step": CountedPass(
        "Sim-VAE step with VGG, 256 px, batch 64", functools.partial(vae_step, 64)
    ),
    "hdit": CountedPass("HDiT forward, 512 px, batch 16", functools.partial(pixel_velocity, 16)),
    "swinir": CountedPass("SwinIR, 512 px, batch 32", functools.partial(posterior_mean, 32)),
}

GUARDED = {name: counted for name, counted in PASSES.items() if counted.is_guarded}
ALLOWED = Path(__file__).parents[1] / "fixtures/cuda_counts.tsv"
COLUMNS = ("pass", *Counts.__dataclass_fields__, "reason")


def allowed() -> dict[str, dict[str, str]]:
    """Read the counts that are allowed, by the pass, with the reason of the last change."""
    _, *lines = ALLOWED.read_text().splitlines()
    rows = (dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines)
    return {row.pop("pass"): row for row in rows}


def row(counts: Counts, reason: str) -> dict[str, str]:
    """Return counts as a row of the table."""
    return {name: str(value) for name, value in asdict(counts).items()} | {"reason": reason}


def renew(reason: str) -> None:
    """Write the table, with the reason in the rows that change."""
    before = allowed() if ALLOWED.exists() else {}
    lines = ["\t".join(COLUMNS)]
    for name, counted in GUARDED.items():
        now = row(counted.traced().counts(), reason)
        last = before.get(name, {})
        kept = now | {"reason": last.get("reason", reason)}
        lines.append("\t".join((name, *(last if last == kept else now).values())))
    ALLOWED.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    renew(*sys.argv[1:])

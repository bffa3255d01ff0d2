"""bf16 by choice, of whatever is trained: networks compute in it, losses and averages do not."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_tasks import CPU, tiny_task
from trainers.loop.config import Precision
from trainers.loop.memory import Plain, samples_of
from trainers.loop.noise import Noise

NOISE = Noise(seed=0, step=0, positions=range(4), total=4, device=CPU)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


@pytest.mark.parametrize("program", ["vae", "predictor"])
def test_steps_and_validations_are_near_those_of_float32(tmp_path: Path, program: str) -> None:
    """Losses, gradients and metrics, where convolutions give bf16; the weights stay as they are."""
    found: dict[Precision, tuple[Tensor, Tensor, float]] = {}
    for precision in PRECISIONS:
        task = tiny_task(program, tmp_path, precision=precision)
        averaged = copy.deepcopy(task.network)
        made: set[torch.dtype] = set()
        for network in (task.network, averaged):
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(lambda *of, made=made: made.add(of[-1].dtype))
        runner = Plain(task.trained, task.config.engine, CPU)
        loss = task.losses(runner, samples_of(task, 4), NOISE)["loss"]
        weights = [value for value in task.network.parameters() if value.requires_grad]
        gradient = torch.cat([one.flatten() for one in torch.autograd.grad(loss, weights)])
        found[precision] = loss, gradient, task.validate(averaged).metrics["psnr"]
        assert made == {torch.bfloat16 if precision == "bf16" else torch.float32}

    (loss, gradient, psnr), (half_loss, half_gradient, half_psnr) = found.values()
    assert half_loss.dtype == half_gradient.dtype == torch.float32
    torch.testing.assert_close(half_loss, loss, rtol=0.02, atol=0)
    assert (half_gradient - gradient).norm() < 0.05 * gradient.norm()
    assert half_psnr == pytest.approx(psnr, abs=0.1)
    assert half_psnr != psnr

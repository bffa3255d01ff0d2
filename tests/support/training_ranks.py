"""What each rank of tests/test_engine.py runs: some steps of a tiny model, losses to a file.

python -m tests.support.training_ranks JOBS.json FOLDER       (started by a launcher, or alone)
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infra.distributed import barrier, rank, world_size
from trainers.loop.batches import plan_batches
from trainers.loop.config import EngineConfig
from trainers.loop.engine import Engine, join, leave

BATCH = 8


class Net(nn.Module):
    """Sizes that no number of ranks divides, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 13)
        self.second = nn.Linear(13, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 7] => [B, 3]."""
        y: Tensor = self.second(torch.tanh(self.first(x))) * self.frozen
        return y


def build(*, fused: bool | None = None) -> tuple[Net, torch.optim.AdamW]:
    """Build the same model and optimiser in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
    trained = [value for value in model.parameters() if value.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01, fused=fused)


def data(step: int) -> tuple[Tensor, Tensor]:
    """Draw the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 7, generator=generator)
    return x, torch.stack([x.sum(1), x[:, 0] * 2, x.norm(dim=1)], 1)


def run(job: dict[str, Any], out: Path) -> dict[str, list[float]]:
    """Train from job["start"] to job["stop"]; returns losses and gradient norms."""
    config = EngineConfig(global_batch_size=BATCH, **job["engine"])
    plan = plan_batches(config, world_size())
    model, optimizer = build(fused=job.get("fused"))
    before = torch.load(job["from"], weights_only=True) if "from" in job else None
    if before is not None:
        model.load_state_dict(before["weights"])
    engine = Engine(model, optimizer, config, plan)
    if before is not None:
        engine.load_optimizer_state(before["moments"])
    if "load" in job:
        engine.load(Path(job["load"]))
    result: dict[str, list[float]] = {"losses": [], "norms": []}
    for step in range(job.get("start", 0), job["stop"]):
        if step == job.get("without"):
            continue
        x, y = data(step)
        size, total = plan.micro_batch_size, 0.0
        for micro in range(plan.accumulation_steps):
            begin = (micro * plan.ranks + rank()) * size
            loss = (engine(x[begin : begin + size]) - y[begin : begin + size]).square().mean()
            if step == job.get("poisoned") and rank() == world_size() - 1:
                loss = loss + math.inf  # whose gradients are finite
            engine.backward(loss)
            total += loss.item() / plan.accumulation_steps
        clipping = job.get("clipping", {}).get(str(step))
        values = torch.tensor([total], dtype=torch.float64)
        norm, (loss_of_all,) = engine.step(1e-2, clipping, values)
        result["norms"].append(norm)
        result["losses"].append(loss_of_all / plan.ranks)
        if step + 1 == job.get("save_at"):
            engine.save(out / job["name"])
    moments = engine.optimizer_state()
    with engine.gathered():
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    torch.save({"weights": weights, "moments": moments}, out / f"{job['name']}.{rank()}.pt")
    barrier()  # the next job may read it
    return result


def main(jobs: list[dict[str, Any]], out: Path) -> None:
    """Run the jobs one after another, to save the imports."""
    torch.set_num_threads(1)
    join()
    results = {job["name"]: run(job, out) for job in jobs}
    if rank() == 0:
        (out / f"{world_size()}.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

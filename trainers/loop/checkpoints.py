"""Checkpoints of a run: whole or absent, readable without DeepSpeed, the best and the last kept.

step-00012000/
manifest.json       written last, once every rank is done: without it there is no checkpoint
record.json         step, configuration, layout, position in the data
model/              the network in float32: model.safetensors, config.json
ema-0.9999/         one such folder for each decay
optimizer.safetensors   Adam's moments by parameter, for another layout
engine/             DeepSpeed's own state, a part from each rank, for the same layout
metrics.json        of the validation of this step, if there was one; comes after the manifest
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infra.config import pretty_json
from infra.distributed import barrier, gathered, rank
from infra.errors import UsageError, UserError
from infra.storage import has_size, remove_tree, write_bytes, written_by_name
from models.checkpoint import load_checkpoint, load_strict, save_checkpoint
from models.ema import EMA, UPDATES
from trainers.loop.engine import Engine

MANIFEST, RECORD, MODEL, ENGINE = "manifest.json", "record.json", "model", "engine"
MOMENTS_FILE, METRICS = "optimizer.safetensors", "metrics.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.record["step"])

    @property
    def metrics(self) -> dict[str, float]:
        """What the validation of this step found; empty if there was none so far."""
        path = self.folder / METRICS
        return dict(json.loads(path.read_bytes())) if path.exists() else {}

    def load_weights(self, network: nn.Module, ema: EMA) -> None:
        """Load the weights and their averages; to be called before an engine takes the network."""
        load_strict(network, load_checkpoint(self.folder / MODEL)[1], self.folder / MODEL)
        state = {UPDATES: torch.tensor(self.record["ema_updates"])}
        names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
        for decay in ema.config.decays:
            averages = load_checkpoint(self.folder / f"ema-{decay}")[1]
            state |= {f"{decay}/{name}": averages[name] for name in names}
        ema.load_state_dict(state)

    def load_engine(self, engine: Engine, layout: dict[str, Any]) -> str:
        """Load the state of the optimiser; returns a phrase that says how exactly."""
        if self.record["layout"] == layout:
            engine.load(self.folder / ENGINE)
            return "to the bit"
        engine.load_optimizer_state(load_file(self.folder / MOMENTS_FILE))
        return f"up to rounding, from another layout ({self.record['layout']})"


class Checkpoints:
    """The checkpoints of one run's folder.

    Args:
        folder: holds a folder for each checkpoint; several machines need one that all of them see.
        keep_last: number of the newest that are kept.
        keep_best: number of the best by the metric ``best`` that are kept besides.
        best: name of a metric of which more is better, or less where it is prefixed by "-".
    """

    def __init__(self, folder: Path, *, keep_last: int, keep_best: int, best: str) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.best = best

    def complete(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first."""
        return [
            Checkpoint(path.parent, json.loads((path.parent / RECORD).read_bytes()))
            for path in sorted(self.folder.glob(f"step-*/{MANIFEST}"))
            if _is_whole(path)
        ]

    def find(self, resume: str) -> Checkpoint | None:
        """Find the checkpoint to resume from: "auto" is the newest complete one, "never" none.

        Raises:
            UsageError: a path that is no complete checkpoint; or "never" where there are some.
        """
        if resume == "auto":
            complete = self.complete()
            return complete[-1] if complete else None
        if resume == "never":
            if self.complete():
                raise UsageError(
                    f"--resume never, but {self.folder} has checkpoints: give another --output, "
                    "or move them away"
                )
            return None
        path = Path(resume)
        if not (path / MANIFEST).is_file() or not _is_whole(path / MANIFEST):
            raise UsageError(
                f"--resume {resume}: no complete checkpoint there; give a step-* folder, or auto"
            )
        return Checkpoint(path, json.loads((path / RECORD).read_bytes()))

    def save(
        self, record: dict[str, Any], engine: Engine, network: nn.Module, ema: EMA
    ) -> Checkpoint:
        """Write a checkpoint; all ranks call it. A failure leaves the older ones as they were.

        Raises:
            UserError: it could not be written; raised on every rank.
        """
        folder = self.folder / f"step-{record['step']:08d}"
        if rank() == 0:
            remove_tree(folder)
            folder.mkdir(parents=True)
        barrier()
        problem = ""
        try:
            engine.save(folder / ENGINE)
        except (OSError, RuntimeError) as error:  # RuntimeError: a full disk, from torch.save
            problem = f"{type(error).__name__}: {error}"
        problems = [found for found in gathered(problem) if found]
        if not problems:
            moments = engine.optimizer_state()
            with engine.gathered():
                problem = self._write(folder, record, moments, network, ema)
            problems = [found for found in gathered(problem) if found]
        if problems:
            if rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise UserError(
                f"{folder} could not be saved ({problems[0]}); free some space and run the same "
                f"command again: it goes on from the last of {len(self.complete())} checkpoints"
            )
        if rank() == 0:
            self.prune()
        barrier()
        return Checkpoint(folder, record)

    def rate(self, step: int, metrics: dict[str, float]) -> None:
        """Add what a validation found to the checkpoint of its step, by which the best are kept."""
        if rank() == 0:
            write_bytes(self.folder / f"step-{step:08d}" / METRICS, pretty_json(metrics))
            self.prune()

    def _write(
        self,
        folder: Path,
        record: dict[str, Any],
        moments: dict[str, Tensor],
        network: nn.Module,
        ema: EMA,
    ) -> str:
        """Write rank 0's files, the manifest last; returns what went wrong, or ""."""
        if rank():
            return ""
        try:
            config = asdict(network.config)  # type: ignore[call-overload]  # each network has one
            save_checkpoint(folder / MODEL, network.state_dict(), config)
            for decay in ema.config.decays:
                averages = ema.averaged_state_dict(network, decay)
                save_checkpoint(folder / f"ema-{decay}", averages, config)
            with written_by_name(folder / MOMENTS_FILE) as path:
                save_file(moments, path)
            write_bytes(folder / RECORD, pretty_json(record))
            sizes = {
                str(path.relative_to(folder)): path.stat().st_size
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            write_bytes(folder / MANIFEST, pretty_json({"step": record["step"], "files": sizes}))
        except (OSError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        except Exception as error:  # safetensors' own class, which it does not export
            if type(error).__name__ != "SafetensorError":
                raise
            return str(error)
        return ""

    def prune(self) -> None:
        """Delete checkpoints that are neither new nor good enough, and incomplete ones."""
        complete = self.complete()
        name, sign = self.best.removeprefix("-"), -1 if self.best.startswith("-") else 1
        rated = [c for c in complete if name in c.metrics]
        rated.sort(key=lambda c: sign * c.metrics[name], reverse=True)
        kept = {c.folder for c in complete[-self.keep_last :] + rated[: self.keep_best]}
        for folder in self.folder.glob("step-*"):
            if folder not in kept:
                (folder / MANIFEST).unlink(missing_ok=True)  # or a part of it might count
                remove_tree(folder)


def _is_whole(manifest: Path) -> bool:
    """Tell whether every file is there at its full length."""
    files = json.loads(manifest.read_bytes())["files"]
    return all(has_size(manifest.parent / name, size) for name, size in files.items())

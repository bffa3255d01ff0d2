"""Checkpoints of a run: whole or absent, readable without DeepSpeed, the best and the last kept.

step-00012000/
manifest.json       bytes and SHA-256 of every file, compared at a resume; written last, once every
                    rank is done: without it there is no checkpoint
record.json         step, configuration, layout, position in the data
model/              the network in float32: model.safetensors, config.json
ema-0.9999/         one such folder for each decay
optimizer.safetensors   Adam's moments by parameter, for another layout
engine/             DeepSpeed's own state, a part from each rank, for the same layout
metrics.json        of the validation of this step, if there was one; comes after the manifest

A damaged checkpoint is moved to damaged-step-..., where nobody looks for one, and the next older
one is taken. A run that goes on from the checkpoint of another run is a fork of that run.
"""

import contextlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infra.config import pretty_json
from infra.distributed import barrier, gathered, rank
from infra.errors import UsageError, UserError
from infra.storage import local_path, move, remove_tree, write_bytes, written_by_name
from models.checkpoint import load_checkpoint, load_strict, save_checkpoint
from models.ema import EMA, UPDATES
from trainers.loop.engine import Engine
from trainers.loop.integrity import MANIFEST, damage, is_whole, seal

CHECKPOINTS, RECORD, MODEL, ENGINE = "checkpoints", "record.json", "model", "engine"
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
        """Return the checkpoints whose files are all there, oldest first; their bytes are not read.

        One whose record is damaged is left out.
        """
        found = []
        for path in sorted(self.folder.glob(f"step-*/{MANIFEST}")):
            if is_whole(path):
                with contextlib.suppress(TypeError, ValueError):
                    found.append(read(path.parent))
        return found

    def find(self, resume: str) -> Checkpoint | None:
        """Find the checkpoint to resume from, whole by SHA-256; all ranks call it.

        Args:
            resume: "auto" is the newest of this folder, "never" none; or the folder of a checkpoint
                or of a run, which is forked if it is another one. A fork that has checkpoints of
                its own goes on from those.

        Raises:
            UsageError: a folder without a whole checkpoint; or checkpoints that are in the way.
            UserError: there are some, but each is damaged.
        """
        if resume == "auto":
            return self._newest()
        if resume == "never":
            if candidates(self.folder):
                raise UsageError(
                    f"--resume never, but {self.folder} has checkpoints: give another --output, "
                    "or move them away"
                )
            return None
        return self._named(resume)

    def is_own(self, checkpoint: Checkpoint) -> bool:
        """Tell whether a checkpoint lies in this folder."""
        return checkpoint.folder.parent.resolve() == self.folder.resolve()

    def _newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint of this folder, and move newer damaged ones aside."""
        bad: dict[Path, str] = {}
        for folder in reversed(candidates(self.folder)):
            if not (why := damage(folder)):
                if rank() == 0:
                    for other, reason in bad.items():
                        _set_aside(other, reason, folder)
                barrier()
                return read(folder)
            bad[folder] = why
        if bad:
            said = "; ".join(f"{folder.name}: {why}" for folder, why in bad.items())
            raise UserError(
                f"{self.folder} has no checkpoint that is whole ({said}). Copy a whole one there, "
                "or give another --output to begin again"
            )
        return None

    def _named(self, resume: str) -> Checkpoint:
        """Return the checkpoint that a user named; see `find`."""
        own, path = candidates(self.folder), local_path(resume)
        if own and path.resolve() == self.folder.parent.resolve():
            return cast(Checkpoint, self._newest())
        if own and path.resolve().parent != self.folder.resolve():
            return self._of_fork(resume, path)
        chosen = read(whole(f"--resume {resume}", path))
        later = [folder for folder in own if folder.name > chosen.folder.name]
        if later and self.is_own(chosen):
            raise UsageError(
                f"--resume {resume}: {self.folder} has later checkpoints, to {later[-1].name}, "
                "that would count as this run's newest: give another --output, which begins a run "
                "of its own there, move the later ones away, or leave --resume out to go on from "
                "the newest"
            )
        return chosen

    def _of_fork(self, resume: str, path: Path) -> Checkpoint:
        """Return the newest checkpoint of a fork that was begun from ``path`` before."""
        newest = cast(Checkpoint, self._newest())
        parent = Path((newest.record["origin"]["parent"] or {"folder": ""})["folder"])
        if path.resolve() not in (parent, parent.parent.parent):
            raise UsageError(
                f"--resume {resume}: {self.folder} has checkpoints of a run that did not begin "
                "there: give another --output, or leave --resume out to go on with that run"
            )
        return newest

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
        if not problems:
            problems = list(filter(None, [seal(folder)]))
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
        """Write rank 0's files but the manifest; returns what went wrong, or ""."""
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


def candidates(folder: Path) -> list[Path]:
    """List the folders with a manifest, oldest first, as rank 0 sees them; all ranks call it."""
    return gathered([path.parent for path in sorted(folder.glob(f"step-*/{MANIFEST}"))])[0]


def read(folder: Path) -> Checkpoint:
    """Read the record of a checkpoint.

    Raises:
        TypeError, ValueError: it is no JSON object.
    """
    return Checkpoint(folder, dict(json.loads((folder / RECORD).read_bytes())))


def whole(option: str, path: Path) -> Path:
    """Return the whole checkpoint that a user's folder is, or the newest one of the run that it is.

    All ranks call it.

    Raises:
        UsageError: there is none; offers an older one where one is whole.
    """
    is_run = (path / CHECKPOINTS).is_dir()
    others = candidates(path / CHECKPOINTS if is_run else path.parent)
    asked = others[-1] if is_run and others else path
    why = damage(asked)
    if not why:
        return asked
    good = next((one for one in reversed(others) if one != asked and not damage(one)), None)
    offer = f"give {good}, which is whole" if good else "give a run or its step-... folder"
    raise UsageError(f"{option}: no complete checkpoint in {asked} ({why}); {offer}")


def _set_aside(folder: Path, why: str, older: Path) -> None:
    """Move a damaged checkpoint to a name by which nobody finds it, and say so."""
    taken = sorted(folder.parent.glob(f"damaged-{folder.name}*"))
    aside = folder.with_name(f"damaged-{folder.name}" + (f"-{len(taken)}" if taken else ""))
    move(folder, aside)
    sys.stderr.write(
        f"WARNING: the checkpoint {folder} is damaged ({why}). It is now {aside.name}, to look at "
        f"or to delete, and the run goes on from {older.name}\n"
    )

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

The checkpoints of a run lie in a local folder or in a bucket (`trainers.loop.stores`); what is said
here of folders is true of both. A damaged checkpoint is moved to damaged-step-..., where
nobody looks for one, and the next older one is taken. A run that goes on from the checkpoint of
another run is a fork of that run.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infra.config import digest, pretty_json
from infra.distributed import by_first, gathered, rank, together
from infra.errors import UsageError, UserError
from infra.paths import AnyPath, path_of, read_if_there
from infra.storage import remove_tree, write_bytes, written_by_name
from models.checkpoint import load_checkpoint, load_strict, save_checkpoint
from models.ema import EMA, UPDATES
from trainers.loop.engine import Engine
from trainers.loop.integrity import seal
from trainers.loop.place import CHECKPOINTS, OTHER, opened
from trainers.loop.stores import METRICS, Store
from trainers.loop.terminal import warn

RECORD, MODEL, ENGINE, MOMENTS_FILE = "record.json", "model", "engine", "optimizer.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint, on this machine's disk."""

    where: AnyPath
    """Where the run has it, which a person is told."""
    folder: Path
    """Where its files are loaded from: the same, or a copy."""
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.record["step"])

    @property
    def networks(self) -> dict[str, str]:
        """What `Task.networks` was; an older record has it of a flow alone, under `restoring`."""
        restoring = self.record.get("restoring") or {}
        known: dict[str, str] = self.record.get("networks", restoring.get("weights", {}))
        return known

    @property
    def metrics(self) -> dict[str, float]:
        """What the validation of this step found; empty if there was none, or if it is damaged."""
        return _numbers(read_if_there(self.folder / METRICS) or b"")

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
    """The checkpoints of one run; all ranks call each method, together.

    Args:
        store: where they are.
        keep_last: number of the newest that are kept.
        keep_best: number of the best by the metric ``best`` that are kept besides.
        best: name of a metric of which more is better, or less where it is prefixed by "-".
    """

    def __init__(self, store: Store, *, keep_last: int, keep_best: int, best: str) -> None:
        self.store = store
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.best = best

    def complete(self) -> list[AnyPath]:
        """Return the checkpoints whose files are all there, oldest first; none is read."""
        return [self.store.where / name for name in self.store.complete()]

    def find(self, resume: str) -> Checkpoint | None:
        """Find the checkpoint to resume from, whole by SHA-256, and have it on this machine.

        Args:
            resume: "auto" is the newest of this run, "never" none; or the folder of a checkpoint
                or of a run, which is forked if it is another one. A fork that has checkpoints of
                its own goes on from those.

        Raises:
            UsageError: a folder without a whole checkpoint; or checkpoints that are in the way.
            UserError: there are some, but each is damaged.
        """
        if resume == "auto":
            return self._newest()
        if resume == "never":
            if self.store.names():
                raise UsageError(
                    f"--resume never, but {self.store.where} has checkpoints: give another "
                    "--output, or move them away"
                )
            return None
        return self._named(resume)

    def is_own(self, checkpoint: Checkpoint) -> bool:
        """Tell whether a checkpoint is of this run."""
        return checkpoint.where.parent.resolve() == self.store.where.resolve()

    def _newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint of this run, and move newer damaged ones aside."""
        bad: dict[str, str] = {}
        for name in reversed(self.store.names()):
            if not (why := self.store.bring(name)):
                for other, reason in bad.items():
                    aside = self.store.set_aside(other)
                    warn(
                        f"the checkpoint {self.store.where / other} is damaged ({reason}). It is "
                        f"now {aside}, to look at or to delete, and the run goes on from {name}"
                    )
                return read(self.store, name)
            bad[name] = why
        if bad:
            said = "; ".join(f"{name}: {why}" for name, why in bad.items())
            raise UserError(
                f"{self.store.where} has no checkpoint that is whole ({said}). Copy a whole one "
                "there, or give another --output to begin again"
            )
        return None

    def _named(self, resume: str) -> Checkpoint:
        """Return the checkpoint that a user named; see `find`."""
        own, path = self.store.names(), path_of(resume)
        home = self.store.where.resolve()
        if own and path.resolve() == home.parent:
            return cast(Checkpoint, self._newest())
        if own and path.resolve().parent != home:
            return self._of_fork(resume, path)
        chosen = whole(f"--resume {resume}", path, self.store.folder.parent / OTHER)
        later = [name for name in own if name > chosen.where.name]
        if later and self.is_own(chosen):
            raise UsageError(
                f"--resume {resume}: {self.store.where} has later checkpoints, to {later[-1]}, "
                "that would count as this run's newest: give another --output, which begins a run "
                "of its own there, move the later ones away, or leave --resume out to go on from "
                "the newest"
            )
        return chosen

    def _of_fork(self, resume: str, path: AnyPath) -> Checkpoint:
        """Return the newest checkpoint of a fork that was begun from ``path`` before."""
        newest = cast(Checkpoint, self._newest())
        parent = path_of((newest.record["origin"]["parent"] or {"folder": "/"})["folder"])
        if path.resolve() not in (parent, parent.parent.parent):
            raise UsageError(
                f"--resume {resume}: {self.store.where} has checkpoints of a run that did not "
                "begin there: give another --output, or leave --resume out to go on with that run"
            )
        return newest

    def save(
        self, record: dict[str, Any], engine: Engine, network: nn.Module, ema: EMA
    ) -> Checkpoint:
        """Write a checkpoint on this machine. A failure leaves the older ones as they were.

        Raises:
            UserError: it could not be written; raised on every rank.
        """
        name, here = f"step-{record['step']:08d}", self.store.here
        folder = self.store.folder / name

        def make_room() -> None:
            if here.is_first:
                remove_tree(folder)
                folder.mkdir(parents=True)

        together(make_room)
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
            problems = list(filter(None, [seal(folder, here)]))
        if problems:
            if here.is_first:
                remove_tree(folder)
            raise UserError(
                f"{folder} could not be saved ({problems[0]}); free some space and run the same "
                f"command again: it goes on from the last of {len(self.complete())} checkpoints"
            )
        return Checkpoint(self.store.where / name, folder, record)

    def publish(self, saved: Checkpoint) -> None:
        """Make a checkpoint that was saved count, and delete those that need not stay.

        Raises:
            UserError: it could not be uploaded; raised on every rank.
        """
        self.store.publish(saved.folder.name)
        self.prune()

    def rate(self, step: int, metrics: dict[str, float]) -> None:
        """Add what a validation found to the checkpoint of its step, by which the best are kept."""
        numbers = {name: float(number) for name, number in metrics.items()}
        saved = {"metrics": numbers, "sha256": digest(numbers)}
        self.store.rate(f"step-{step:08d}", pretty_json(saved))
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
        complete = self.store.complete()
        name, sign = self.best.removeprefix("-"), -1 if self.best.startswith("-") else 1
        found = {one: _numbers(self.store.read(one, METRICS)) for one in complete}
        rated = [one for one in complete if name in found[one]]
        rated.sort(key=lambda one: sign * found[one][name], reverse=True)
        self.store.keep({*complete[-self.keep_last :], *rated[: self.keep_best]})


def read(store: Store, name: str) -> Checkpoint:
    """Read the record of a checkpoint that the store has brought.

    Raises:
        TypeError, ValueError: it is no JSON object.
    """
    folder = store.folder / name
    return Checkpoint(store.where / name, folder, dict(json.loads((folder / RECORD).read_bytes())))


def step_of(checkpoint: AnyPath) -> int:
    """Return the step of the checkpoint of this name."""
    return int(checkpoint.name.rpartition("-")[2])


def whole(option: str, path: AnyPath, copies: Path, below: tuple[str, ...] = ("",)) -> Checkpoint:
    """Return the whole checkpoint that a user's folder is, or the newest one of the run that it is.

    All ranks call it.

    Args:
        option: that names it, for messages.
        path: what the user gave.
        copies: folder on this machine for what is in a bucket.
        below: what of it is enough, as of `Store.bring`.

    Raises:
        UsageError: there is none; offers an older one where one is whole.
    """
    store, asked = chosen(path, copies)
    why = store.bring(asked, below)
    if not why:
        return read(store, asked)
    others = [name for name in reversed(store.names()) if name != asked]
    good = next((name for name in others if not store.bring(name, below)), None)
    offer = (
        f"give {store.where / good}, which is whole"
        if good
        else "give a run or its step-... folder"
    )
    raise UsageError(f"{option}: no complete checkpoint in {store.where / asked} ({why}); {offer}")


def chosen(path: AnyPath, copies: Path) -> tuple[Store, str]:
    """Return where a checkpoint is and its name: the one given, or the newest of the run given."""
    if by_first((path / CHECKPOINTS).is_dir):
        store = opened(path / CHECKPOINTS, copies)
        return store, max(store.names(), default="")
    return opened(path.parent, copies), path.name


def _numbers(data: bytes) -> dict[str, float]:
    """Read what `Checkpoints.rate` wrote; empty if it is damaged, or not there."""
    try:
        saved = json.loads(data)
        found = {str(name): float(number) for name, number in saved["metrics"].items()}
        return found if saved["sha256"] == digest(found) else {}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}

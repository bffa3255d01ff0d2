"""The loop of every trainer: save, validate, one step, log; the recipe comes as a `Task`.

The loop goes round once more than there are steps, so that the last validation and checkpoint need
no code of their own. Each step is a function of its number, so a run that was killed and resumed
equals one that was not. A checkpoint does not wait for the validation of its step, which can be
left, and is then made up for by the next start.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from datasets.reading.order import Layout
from infra.config import digest, pretty_json, to_dict
from infra.distributed import barrier, gathered, rank, sums, world_size
from infra.errors import UsageError, UserError
from infra.notices import Notices
from infra.paths import path_of
from infra.storage import remove_tree, write_bytes
from infra.tracking.record import Resume
from infra.tracking.run import Run, start_run
from models.ema import EMA
from models.transfer import sent
from trainers.loop.agreement import (
    in_common,
    refuse_other_run,
    refuse_replaced_networks,
    refuse_unequal_ranks,
)
from trainers.loop.batches import BatchPlan, deepspeed_json, plan_batches
from trainers.loop.changes import check_changes, clipping_at, rate_at
from trainers.loop.checkpoints import Checkpoints
from trainers.loop.config import TrainerConfig
from trainers.loop.cost import device_name, job_peak_tflops, memory_gb, peak_memory_gb
from trainers.loop.dry_run import dry_run
from trainers.loop.engine import Engine, join, leave, leave_refused
from trainers.loop.log import StepAverages, clock
from trainers.loop.memory import advice, room
from trainers.loop.noise import Noise
from trainers.loop.not_finite import Micro, examined, remedy, said
from trainers.loop.place import OTHER, Place, held, looked_at
from trainers.loop.run_files import CONFIG
from trainers.loop.start import begun, tags
from trainers.loop.task import Finished, Interrupted, Task, by_name
from trainers.loop.terminal import say, warn
from trainers.loop.validation import Bar, readable, validated_already
from trainers.loop.watchdog import Watchdog

# Seconds to wait at most for MLflow at the end: a model takes long; SIGKILL soon follows SIGTERM.
PATIENCE = {"FINISHED": 300.0, "KILLED": 10.0}


def run(config: TrainerConfig, build: Callable[[torch.device], Task]) -> int:
    """Train, from where the output folder's checkpoints end; returns the exit code.

    Args:
        config: the whole configuration.
        build: makes the task on a device, after the processes have joined.
    """
    loop, plan = config.loop, plan_batches(config.engine, world_size())
    if not loop.output:
        raise UsageError("no --output; give the folder of the run")
    check_changes(config)
    say(f"{plan}\n")
    with ExitStack() as stack:
        notices = stack.enter_context(Notices(loop.on_usr1))
        watchdog = stack.enter_context(Watchdog(loop.timeout_minutes))
        device = join(loop.timeout_minutes)
        stack.push(leave_refused)
        if loop.dry_run:
            store = looked_at(loop)
            saved = [store.where / name for name in store.complete()]
            task = build(device)
            say(dry_run(task, task.config, device, saved))
            leave()
            return 0
        place = stack.enter_context(held(loop))
        task = build(device)
        config, facts = task.config, task.facts()
        refuse_unequal_ranks(in_common(task, facts))
        training = Training(task, config, plan, notices, watchdog, place)
        with start_run(
            task.experiment,
            folder=place.folder,
            name=path_of(loop.output).name,
            params={**to_dict(config), **facts},
            resume=Resume(
                training.token,
                training.first or -1,
                {**tags(training.origin), **training.facts()},
            ),
            track=loop.track,
        ) as tracked:
            place.send_files()
            finished = training.train(tracked)
            status = "FINISHED" if finished else "KILLED"
            tracked.close(status, PATIENCE[status])
            if loop.track:
                say(f"MLflow: {tracked.where()}\n")
        place.send_files()
        barrier()  # the launcher ends all ranks when one has ended
        leave()
    return 0 if finished else notices.code


class Training:
    """The state of a run, and what it does in each round of the loop.

    Args:
        task: what is trained.
        config: how it is trained.
        plan: the division of the global batch.
        notices: what this rank is told from outside.
        watchdog: what ends it when it hangs.
        place: where the run is.

    Attributes:
        step: number of updates done, or left out.
        skipped: the steps that were left out.
        saved: the last step that has a checkpoint, or where the run began.
        validated: the last step whose validation is done; None before the first.
        stopped: whether some rank was told to end.
        flops: FLOPs of a step, all ranks together.
        peak: TFLOP/s of all ranks' devices together; None where some device is unknown.
        token: token of the tracked run to continue; None begins a new one.
        origin: where the run began, see `trainers.loop.start`.
        metrics: what the last validation found.
    """

    def __init__(
        self,
        task: Task,
        config: TrainerConfig,
        plan: BatchPlan,
        notices: Notices,
        watchdog: Watchdog,
        place: Place,
    ) -> None:
        loop = config.loop
        self.task, self.config, self.plan = task, config, plan
        self.notices, self.watchdog = notices, watchdog
        self.stopped = self.save_asked = False
        self.folder = place.folder
        place.begin()
        self.checkpoints = Checkpoints(
            place.store,
            keep_last=loop.keep_last,
            keep_best=loop.keep_best,
            best=task.best,
        )
        device = next(task.network.parameters()).device.type
        self.layout = {
            "ranks": plan.ranks,
            "zero_stage": config.engine.stage(plan.ranks),
            "device": device,
            "deepspeed": digest(deepspeed_json(config.engine, plan)),
            **({"compiled": True} if config.engine.compiles(device) else {}),
        }
        self.averaged = copy.deepcopy(task.network).requires_grad_(False).eval()
        before = self.checkpoints.find(loop.resume)
        is_own = before is None or self.checkpoints.is_own(before)
        self.origin = begun(task, config, before, is_own=is_own)
        self.parameters = sum(value.numel() for value in task.network.parameters())
        self.memory = self._memory()
        self.ema = EMA(task.network, config.ema)
        if before is not None:
            refuse_other_run(config, before)
            refuse_replaced_networks(task.networks(), before)
            before.load_weights(task.network, self.ema)
        trained = [value for value in task.network.parameters() if value.requires_grad]
        fused = device == "cuda" or None  # on CPUs its last bits differ, and nothing is gained
        optimizer = torch.optim.AdamW(trained, **asdict(config.optimizer), fused=fused)
        self.engine = Engine(task.trained, optimizer, config.engine, plan)
        how = "" if before is None else before.load_engine(self.engine, self.layout)
        self.first = self.step = self.saved = 0 if before is None else before.step
        self.validated = validated_already(self.checkpoints, before, self.folder)
        self.skipped = [] if before is None else list(before.record["skipped_steps"])
        self.token = before.record["token"] if before and is_own else None
        self.metrics = before.metrics if before else {}
        layout = Layout(ranks=plan.ranks, rank=rank(), micro_batch=plan.micro_batch_size)
        self.flops = task.flops_per_sample() * plan.global_batch_size
        self.peak = job_peak_tflops(self.engine.device, config.engine.precision)
        self.loader = task.loader(layout, None if before is None else before.record["data"])
        self.position = self.loader.state
        if before is not None:
            verb = "resumed" if is_own else "a run of its own, forked"
            say(f"{verb} from {before.where} {how}\n")
            if self.step >= loop.max_steps:
                say(f"complete already: {self.step} of {loop.max_steps} steps\n")
        if rank() == 0:
            write_bytes(self.folder / CONFIG, pretty_json(to_dict(config)))
        if place.store.here.is_first:
            remove_tree(self.folder / OTHER)

    def train(self, tracked: Run) -> bool:
        """Train to the last step; returns False if the run was told to end before.

        Raises:
            UserError: a loss or gradient that is not finite, before it reaches any weight.
        """
        loop = self.config.loop
        for name, sha, source, context in self.task.data():
            tracked.log_dataset(name, sha, source, context)
        say(self._describe())
        batches, averages = iter(self.loader), StepAverages(self.step)
        while True:
            done = self.step >= loop.max_steps
            if self._is_save_due(done):
                self.save(tracked)
                averages = StepAverages(self.step)
            if self._is_validation_due():
                self.validate(tracked)
                averages = StepAverages(self.step)
            if self._is_save_due(done):  # it was told to, during the validation
                self.save(tracked)
            if done or self.stopped:
                break
            self.watchdog.arm(f"step {self.step}")
            self.update(batches, averages)
            if self.step % loop.log_every == 0 or self.step >= loop.max_steps:
                self.log(averages, tracked)
                averages = StepAverages(self.step)
        self.watchdog.disarm()
        finished = done and not self.stopped
        if finished and rank() == 0:
            self.finish(tracked)
        return finished

    def _is_save_due(self, done: bool) -> bool:
        is_time = done or self.stopped or self.save_asked
        return self.saved != self.step and (is_time or self.step % self.config.loop.save_every == 0)

    def _is_validation_due(self) -> bool:
        every, last = self.config.loop.validate_every, self.config.loop.max_steps
        is_time = every > 0 and (self.step == last or (self.step < last and self.step % every == 0))
        return is_time and not self.stopped and self.validated != self.step

    def update(self, batches: Iterator[Any], averages: StepAverages) -> None:
        """Take one step, and hear what any rank was told meanwhile."""
        if self.step in self.config.changes.skip_steps:
            for _ in range(self.plan.accumulation_steps):
                _, self.position = next(batches)
            self._heed(*sums(self.notices.take(), str(self.engine.device)))
            self._leave_out(f"step {self.step} is left out, by --skip-steps")
        else:
            self._learn(batches, averages)
        self.step += 1

    def _learn(self, batches: Iterator[Any], averages: StepAverages) -> None:
        """Update the weights."""
        losses, micros = self._gradients(batches, averages)
        mine = torch.stack(list(losses.values())) / self.plan.accumulation_steps
        told = torch.tensor(self.notices.take(), dtype=torch.float64)
        numbers = torch.cat([sent(told, self.engine.device), mine])
        rate, clipping = (at(self.step, self.config) for at in (rate_at, clipping_at))
        norm, (end, save, *totals) = self.engine.step(rate, clipping, numbers)
        self._heed(end, save)
        is_bad = not all(map(math.isfinite, totals))
        if is_bad or not math.isfinite(norm):
            self._not_finite("the loss" if is_bad else "a gradient", micros)
            return
        with self.engine.gathered():
            self.ema.update(self.task.network)
        values = dict(zip(losses, (total / self.plan.ranks for total in totals), strict=True))
        averages.add({**values, "grad_norm": norm}, rate)

    def _heed(self, end: float, save: float) -> None:
        """Do as some ranks were told; the numbers are theirs, the same on all ranks."""
        if end and not self.stopped:
            say(f"told to end by {self.notices.reason or 'another rank'}\n")
        self.stopped, self.save_asked = self.stopped or end > 0, self.save_asked or save > 0

    def _gradients(
        self, batches: Iterator[Any], averages: StepAverages
    ) -> tuple[dict[str, Tensor], list[Micro]]:
        """Add up the gradients of a step; returns the sums of its losses, and what it was of."""
        losses: dict[str, Tensor] = {}
        micros: list[Micro] = []
        for micro in range(self.plan.accumulation_steps):
            began = time.perf_counter()
            batch, self.position = next(batches)
            averages.waited += time.perf_counter() - began
            begin = (micro * self.plan.ranks + rank()) * self.plan.micro_batch_size
            noise = Noise(
                seed=self.config.loop.seed,
                step=self.step,
                positions=range(begin, begin + self.plan.micro_batch_size),
                total=self.plan.global_batch_size,
                device=self.engine.device,
            )
            found = self.task.losses(self.engine, batch, noise)
            self.engine.backward(found["loss"])
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + value.detach().double()
            micros.append((batch, noise))
        return losses, micros

    def _not_finite(self, what: str, micros: list[Micro]) -> None:
        """Leave a step out whose update the engine has dropped, if the user allows it.

        Raises:
            UserError: it is not allowed, or not any more; names the sample and the remedy.
        """
        suspects = examined(self.task, self.engine, micros)
        why = said(what, self.step, suspects)
        allowed = self.config.changes.skip_non_finite
        found = set(self.skipped) - set(self.config.changes.skip_steps)
        if len(found) < allowed:
            self._leave_out(f"{why}. It is left out, {len(found) + 1} of {allowed} such steps")
            return
        advice = remedy(self.step, self.checkpoints.complete(), suspects, self.config)
        left = f" --skip-non-finite {allowed} is used up by {sorted(found)}." if allowed else ""
        raise UserError(f"{why}. Nothing was updated.{left} {advice}")

    def _leave_out(self, why: str) -> None:
        self.skipped.append(self.step)
        warn(why)

    def validate(self, tracked: Run) -> None:
        """Validate the averaged weights and record what was found, unless told to end meanwhile."""
        self.averaged.load_state_dict(self.ema.averaged_state_dict(self.task.network))
        with Bar(f"step {self.step}") as bar:

            def between(what: str, number: int, count: int) -> None:
                self.watchdog.arm(
                    f"batch {number + 1} of the validation of step {self.step}, {what},"
                )
                end, save = sums(self.notices.take(), str(self.engine.device))
                self._heed(end, save)
                if self._is_save_due(done=False):
                    self.save(tracked)
                if self.stopped:
                    raise Interrupted
                bar.show(what, number, count)

            try:
                result = self.task.validate(self.averaged, between)
            except Interrupted:
                say(f"step {self.step}: the validation waits for the next start\n")
                return
        self.metrics = result.metrics
        if result.grid is not None:
            tracked.log_image("val/pictures", result.grid, self.step)
            path = self.folder / "samples" / f"step-{self.step:08d}.png"
            if rank() == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                result.grid.save(path)
        # In this order: a start after a kill in between finds the numbers in the log.
        tracked.log_metrics({f"val/{name}": n for name, n in result.metrics.items()}, self.step)
        if self.saved == self.step:
            self.checkpoints.rate(self.step, result.metrics)
        self.validated, block = self.step, readable(result.metrics, self.task.best)
        say(f"step {self.step}: validation; * keeps the best checkpoints\n{block}")

    def save(self, tracked: Run) -> None:
        """Save a checkpoint; all ranks together."""
        self.watchdog.arm(f"the save of step {self.step}")
        record = {
            "step": self.step,
            "config": to_dict(self.config),
            "layout": self.layout,
            "data": self.position,
            "ema_updates": self.ema.updates,
            "skipped_steps": self.skipped,
            "origin": self.origin,
            "networks": self.task.networks(),
            "restoring": self.task.restoring(),
            "token": tracked.token or None,
        }
        began = time.perf_counter()
        saved = self.checkpoints.save(record, self.engine, self.task.network, self.ema)
        self.watchdog.arm(f"the upload of step {self.step}")
        self.checkpoints.publish(saved)
        self.saved, self.save_asked = self.step, False
        how = "saved" if saved.where == saved.folder else "saved and uploaded"
        seconds = time.perf_counter() - began
        say(f"step {self.step}: {how} {saved.where} in {seconds:.1f} s\n")

    def finish(self, tracked: Run) -> None:
        """Write the averaged weights and register them as a model; on rank 0."""
        self.averaged.load_state_dict(self.ema.averaged_state_dict(self.task.network))
        metrics = self.metrics if self.validated == self.step else {}
        model = self.task.export(self.averaged, Finished(self.step, metrics, self.origin))
        data = by_name(self.task.data())
        origin = {name: fact for name, fact in self.origin.items() if fact}
        facts = {"step": self.step, "data": data, **origin, "val": self.metrics, **model.facts}
        tracked.log_model(replace(model, facts=facts))

    def log(self, averages: StepAverages, tracked: Run) -> None:
        """Record the averages of the steps since the last time."""
        left_out = {"train/skipped_steps": len(self.skipped)} if self.skipped else {}
        if not averages.steps:
            tracked.log_metrics(left_out, self.step)
            return
        metrics = averages.metrics(self.plan.global_batch_size, self.flops, self.peak) | left_out
        metrics["speed/peak_memory_gb"] = max(gathered(peak_memory_gb(self.engine.device)))
        if self.config.loop.skip_budget:
            (metrics["data/skipped"],) = sums([self.loader.skipped], str(self.engine.device))
        tracked.log_metrics(metrics, self.step)
        left = (self.config.loop.max_steps - self.step) * metrics["speed/step_seconds"]
        say(
            f"step {self.step}/{self.config.loop.max_steps}  loss {metrics['train/loss']:.5f}  "
            f"gradient {metrics['train/grad_norm']:.3f}  "
            f"{metrics['speed/samples_per_second']:.1f} samples/s  "
            f"data {metrics['speed/data_share']:.1%}  left {clock(left)}\n"
        )

    def facts(self) -> dict[str, str]:
        """Tell how steps are computed here, which is no part of what the run is."""
        return {
            "ranks": str(self.plan.ranks),
            "device": device_name(self.engine.device),
            "zero_stage": str(self.engine.stage),
            "compiled": "blocks" if self.engine.is_compiled else "nothing",
        }

    def _memory(self) -> str:
        """Say what memory a rank needs, before an engine has the weights."""
        device = next(self.task.network.parameters()).device
        if device.type == "cuda":
            return advice(self.task, self.config, self.plan, device, room(device))
        ranks, averages = self.plan.ranks, len(self.config.ema.decays)
        stage = self.config.engine.stage(ranks)
        held = sum(memory_gb(self.parameters, ranks, stage, averages).values())
        return (
            f"{held:.3g} GB on each rank at ZeRO {stage} for weights, gradients, moments, averages "
            "and validation, without activations"
        )

    def _describe(self) -> str:
        """Return a line with the cost of a step and the memory that a rank needs."""
        compiled = "compiled block by block" if self.engine.is_compiled else "not compiled"
        return (
            f"{self.parameters:,} parameters, {compiled}; {self.flops / 1e12:.4g} TFLOP per step; "
            f"{self.memory}; steps {self.step} to {self.config.loop.max_steps}\n"
        )

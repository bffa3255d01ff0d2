"""What a training run recorded, from the log in its folder or from its run in MLflow.

Both hold the same (`infra.tracking`), and both are only read. Of a step that was recorded twice the
first numbers count, as they do in MLflow, and of a setting that a later start changed the first
value, beside a note of the change.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import UsageError
from infra.paths import AnyPath, fetched, path_of
from infra.tracking.record import LOG, read
from infra.tracking.rules import SQLITE, keep_quiet, tracking_uri, without_password
from infra.tracking.store import TOKEN_TAG

SECONDS, TFLOPS = "speed/step_seconds", "speed/tflops_per_second"
VALIDATION = "val/"
CHANGED = "changed."  # before the name of a setting, in tags of MLflow


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run's settings and numbers."""

    source: str
    """What the user gave: a folder, or an id of MLflow."""
    name: str
    token: str = ""
    """The run's own name for itself; empty in logs of old versions."""
    params: dict[str, str] = field(default_factory=dict)
    """Settings by dotted name."""
    tags: dict[str, str] = field(default_factory=dict)
    """Where the run took place and where it began."""
    changed: dict[str, str] = field(default_factory=dict)
    """Settings that a later start changed, with both values."""
    points: dict[str, dict[int, float]] = field(default_factory=dict)
    """Value by step, in the order of the steps, by the name of the number."""

    def learn(self, kind: str, pairs: Mapping[str, str]) -> None:
        """Take ``params`` or ``tags`` of a start; the first value of each stays."""
        known: dict[str, str] = getattr(self, kind)
        for name, value in pairs.items():
            if known.setdefault(name, value) != value:
                self.changed[name] = f"{known[name]} -> {value}"

    def add(self, name: str, step: int, value: float) -> None:
        """Take a number of a step, unless the step has it."""
        self.points.setdefault(name, {}).setdefault(step, value)

    def sorted(self) -> "RunRecord":
        """Return the same with every number's steps in their order."""
        points = {name: dict(sorted(by_step.items())) for name, by_step in self.points.items()}
        return RunRecord(
            self.source, self.name, self.token, self.params, self.tags, self.changed, points
        )


def read_run(source: str) -> RunRecord:
    """Read a run.

    Args:
        source: its folder, local or in a bucket, or the id of its run in MLflow.

    Raises:
        UsageError: it is neither.
    """
    log = path_of(source) / LOG
    if log.exists():
        return _of_log(source, log)
    if re.fullmatch("[0-9a-f]{32}", source):
        return _of_store(source)
    raise UsageError(
        f"{source}: no run; give the folder of a run, in which {LOG} lies, or the id of a run in "
        "MLflow, 32 digits that its page shows"
    )


def _of_log(source: str, log: AnyPath) -> RunRecord:
    with fetched(log) as local:
        lines = [line for line, _ in read(local)]
    starts = [line["start"] for line in lines if isinstance(line.get("start"), dict)]
    start: dict[str, Any] = starts[-1] if starts else {}
    record = RunRecord(source, start.get("name") or log.parent.name, start.get("token", ""))
    for one in starts:
        record.learn("tags", one.get("tags", {}))
    for line in lines:
        if isinstance(line.get("params"), dict):
            record.learn("params", line["params"])
        elif isinstance(line.get("step"), int):
            for name, value in _numbers(line):
                record.add(name, line["step"], value)
    return record.sorted()


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if _is_wanted(name) and isinstance(value, int | float):
            yield name, float(value)


def _is_wanted(name: str) -> bool:
    return name in (SECONDS, TFLOPS) or name.startswith(VALIDATION)


def _of_store(run_id: str) -> RunRecord:
    uri = tracking_uri()
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise UsageError(
            f"{run_id}: no such folder, and MLFLOW_TRACKING_URI={uri} names a store that is not "
            "there; set it to that of the runs, or give the folders of the runs"
        )
    keep_quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    try:
        run = client.get_run(run_id)
        record = RunRecord(run_id, run.info.run_name, run.data.tags.get(TOKEN_TAG, ""))
        record.learn("params", run.data.params)
        record.learn("tags", {k: v for k, v in run.data.tags.items() if k != TOKEN_TAG})
        for name in filter(_is_wanted, run.data.metrics):
            for point in client.get_metric_history(run_id, name):
                record.add(name, point.step, point.value)
    except MlflowException as error:
        why = str(error).strip().splitlines()[0]
        raise UsageError(f"{run_id}: cannot be read from {without_password(uri)}: {why}") from error
    notes = {k.removeprefix(CHANGED): v for k, v in record.tags.items() if k.startswith(CHANGED)}
    record.changed.update(notes)
    return record.sorted()

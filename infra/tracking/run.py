"""MLflow without waiting for it: recorded on the local disk at once, in MLflow a second later.

    with start_run("latent-pmrf/flow", folder=output / ".tracking", params=to_dict(config)) as run:
        run.log_metrics({"train/loss": loss}, step)

MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and MLFLOW_RUN_ID mean what they always mean; without
them a run goes to ``mlflow.db`` in the working directory. A store that is away delays what is
recorded, never the job: :mod:`infra.tracking.journal` keeps it, and :mod:`infra.tracking.delivery`
sends it in this process, in the next one that starts a run in the same folder, or by
``python -m infra.tracking.delivery``.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from infra.config import digest
from infra.distributed import rank
from infra.termination import Termination
from infra.tracking import provenance
from infra.tracking.delivery import Delivery, warn
from infra.tracking.image_grid import ImageGrid
from infra.tracking.journal import take
from infra.tracking.models import FinishedModel, keep
from infra.tracking.rules import (
    SQLITE,
    flatten,
    keep_quiet,
    safe_key,
    tracking_uri,
    without_password,
)
from infra.tracking.store import require_run
from infra.tracking.system import SystemSampler

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a run's records when it was closed."""

    status: str  # FINISHED, FAILED or KILLED
    run_id: str | None  # MLflow's id; None if the store was never reached
    records: int  # still to be sent
    files: int  # still to be sent
    refused: int  # requests that the store refused as invalid
    lost: int  # records that neither the disk nor the store took
    folder: Path  # where all but the lost ones wait


class Run:
    """One run: all that a job wants remembered. Off rank 0 it takes everything and does nothing.

    As a context manager it ends as FINISHED, as FAILED by an exception, or as KILLED by SIGTERM or
    Ctrl-C (enter it after ``ray.init``, see :mod:`infra.termination`). Only :meth:`close` waits for
    the store.

    Attributes:
        token: the run's lasting name; with it :func:`start_run` continues this run from any folder.
        outcome: what :meth:`close` returned, or None.
    """

    def __init__(self, delivery: Delivery | None = None, *, system_metrics: bool = False) -> None:
        self.token = delivery.journal.token if delivery else ""
        self.outcome: Outcome | None = None
        self._delivery = delivery
        created: float = delivery.journal.load("run.json")["created"] if delivery else 0.0
        # Without the tag, MLflow's pages hide the image grid.
        seen = partial(self.set_tags, {"mlflow.loggedImages": "True"})
        self._grid = ImageGrid(delivery.journal, created, seen) if delivery else None
        self._sampler = SystemSampler(self.log_metrics, created) if system_metrics else None
        self._termination = Termination()
        self._disk_failed = False
        if delivery:
            delivery.start()
        if self._sampler:
            self._sampler.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the store has been reached, and off rank 0."""
        return self._delivery.store.run_id if self._delivery else None

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers of a step; without a step, of the whole run, where the last ones count.

        Args:
            values: by name, such as ``train/loss``; NaN and infinities are kept as such.
            step: of the training clock. One that an earlier session of the run recorded keeps its
                first value: MLflow can neither replace nor delete a point.
        """
        metrics = {safe_key(key): float(value) for key, value in values.items()}
        clock = {} if step is None else {"step": int(step)}
        self._record({"metrics": metrics, "time": _now(), **clock})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted names. A run keeps the first value of each."""
        self._record({"params": flatten(values)})

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Record facts that may change; the last value counts."""
        self._record({"tags": flatten(values)})

    def log_dataset(self, name: str, digest: str, source: str, context: str = "training") -> None:
        """Record data that the run reads.

        Args:
            name: of the set.
            digest: SHA-256 of its manifest in hex; MLflow shows 36 digits, the profile all.
            source: path or URI.
            context: what it is used for: training, validation, curation.
        """
        dataset = {"name": name, "digest": digest, "source": source, "context": context}
        self._record({"dataset": dataset})

    def log_artifact(self, path: str | os.PathLike[str], folder: str = "") -> None:
        """Attach a file as it is now; the caller waits for a local copy only.

        Raises:
            OSError: the file cannot be read or copied.
        """
        if self._delivery:
            self._delivery.journal.copy(Path(path), f"{folder}/{Path(path).name}".lstrip("/"))

    def log_image(self, key: str, image: "Image | np.ndarray[Any, Any]", step: int) -> None:
        """Attach a picture to a step, for MLflow's image grid; few big ones are best.

        The grid opens at step 0 and is empty there unless that step has a picture.

        Args:
            key: its name; the same key and step again replaces it.
            image: PIL image, or uint8 ``[H, W]`` or ``[H, W, 3]``; copied now, encoded later.
            step: of the training clock.
        """
        if self._grid:
            self._grid.add(key, image, int(step))

    def log_model(self, model: FinishedModel) -> None:
        """Register a finished model; the caller waits for a local copy of its files only."""
        if self._delivery:
            try:
                self._record({"model": keep(model, self._delivery.journal)})
            except OSError as error:
                warn(f"{error}; {model.name} is not registered, and stays in {model.folder}")

    def close(self, status: str = "FINISHED", timeout: float = 30.0) -> Outcome | None:
        """End the run, send what is left, and say what could not be sent and where it waits.

        Args:
            status: FINISHED, FAILED or KILLED.
            timeout: seconds to wait at most; a store that is away gets one attempt, not all of it.
        """
        if self._delivery is None or self.outcome is not None:
            return self.outcome
        journal = self._delivery.journal
        if self._sampler:
            self._sampler.stop()
        if self._grid:
            self._grid.close()
        self._record({"end": status, "time": _now()})
        self._keep(lambda: journal.save("run.json", {**journal.load("run.json"), "status": status}))
        self._delivery.close(timeout)
        records, files = self._delivery.left()
        self.outcome = Outcome(
            status=status,
            run_id=self.run_id,
            records=records,
            files=files,
            refused=self._delivery.refused,
            lost=journal.unwritten,
            folder=journal.folder,
        )
        if records or files:
            warn(
                f"{records} records and {files} files wait in {journal.folder}; the next run there "
                f"sends them, or: python -m infra.tracking.delivery {journal.folder.parent}"
            )
        if journal.unwritten:
            warn(f"{journal.unwritten} records are lost: {journal.folder} could not be written")
        if not self._delivery.is_alive():
            self._delivery.settle()
        return self.outcome

    def where(self) -> str:
        """Say in one line where to look at the run."""
        if self._delivery is None:
            return "not tracked by this process"
        uri = without_password(self._delivery.uri).rstrip("/")
        if self.run_id and uri.startswith("http"):
            page = f"{uri}/#/experiments/{self._delivery.store.experiment_id}/runs/{self.run_id}"
            return f"{page}?workflowType=machine_learning"  # else MLflow shows its chat pages
        look = f" (mlflow server --backend-store-uri {uri})" if uri.startswith(SQLITE) else ""
        return f"run {self.run_id or self.token} in {uri}{look}"

    def __enter__(self) -> Self:
        if self._delivery:
            self._termination.watch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close(self._termination.status(error))
        finally:
            self._termination.unwatch()

    def _record(self, record: Mapping[str, Any]) -> None:
        if self._delivery and self.outcome is None:
            journal = self._delivery.journal
            self._keep(lambda: journal.append(record))

    def _keep(self, write: Callable[[], None]) -> None:
        """Write to the journal; a disk that refuses must not stop the job."""
        try:
            write()
        except OSError as error:
            if not self._disk_failed:
                warn(f"{error}; records are kept in memory until the disk takes them")
            self._disk_failed = True


def start_run(
    experiment: str,
    *,
    folder: Path,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    token: str | None = None,
    system_metrics: bool = True,
) -> Run:
    """Start recording a run, or go on with one, before the store has been reached.

    Continued is the run that MLFLOW_RUN_ID names, else that of ``token``, else one in ``folder``
    that has the same experiment, store and parameters and did not finish.

    Args:
        experiment: such as ``latent-pmrf/curate``; MLFLOW_EXPERIMENT_NAME overrides it.
        folder: where records wait on their way; nothing stays there of a finished run.
        name: shown in MLflow, which by default makes one up.
        params: the configuration, nested or flat.
        token: :attr:`Run.token` of an earlier run, as a checkpoint keeps it.
        system_metrics: record CPU, memory, disk, network and GPU every ten seconds.

    Raises:
        UsageError: an impossible MLFLOW_TRACKING_URI; a MLFLOW_RUN_ID that the store does not know.
        UserError: another process is recording the run asked for.
    """
    if rank() != 0:
        return Run()
    uri, run_id = tracking_uri(), os.environ.get("MLFLOW_RUN_ID") or None
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    flat = flatten(params or {})
    keep_quiet()
    # Imported here, not by the thread that needs it: threads that import the same libraries at the
    # same time may meet half-made modules.
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    if run_id:
        require_run(uri, run_id)
    target = {"uri": without_password(uri), "experiment": experiment, "params": digest(flat)}
    journal = take(folder, target, run_id or token)
    known = {"created": time.time(), "run_id": run_id, **journal.load("run.json")}
    journal.save("run.json", {**known, **target, "status": "RUNNING"})
    start = {"experiment": experiment, "name": name, "tags": provenance.tags()}
    journal.append({"start": start, "time": _now()})
    journal.append({"params": flat})
    return Run(Delivery(journal, uri), system_metrics=system_metrics)


def _now() -> int:
    """Return the time in milliseconds since 1970, as MLflow counts it."""
    return int(time.time() * 1000)

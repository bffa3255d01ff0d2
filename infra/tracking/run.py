"""MLflow without waiting for it: recorded on the local disk at once, in MLflow a second later.

    with start_run("latent-pmrf/flow", folder=output, params=to_dict(config)) as run:
        run.log_metrics({"train/loss": loss}, step)

MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and MLFLOW_RUN_ID mean what they always mean; without
them a run goes to ``mlflow.db`` in the working directory. A store that is away delays what is
recorded, never the job: ``log.jsonl`` keeps it (:mod:`infra.tracking.record`), and it is sent by
this process, by the next one that continues the run, or by ``python -m infra.tracking FOLDER``
(:mod:`infra.tracking.uploader`).
"""

import io
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from infra.config import digest
from infra.distributed import rank
from infra.storage import exclusive
from infra.termination import Termination
from infra.tracking import provenance
from infra.tracking.models import FinishedModel, keep
from infra.tracking.record import STATE, Record, Resume, described, now, take
from infra.tracking.rules import (
    SQLITE,
    flatten,
    grid_files,
    keep_quiet,
    measures_system,
    safe_key,
    tracking_uri,
    without_password,
)
from infra.tracking.store import require_run
from infra.tracking.system import SystemSampler
from infra.tracking.uploader import Uploader, command, warn

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class Run:
    """One run: all that a job wants remembered. Off rank 0 it takes everything and does nothing.

    As a context manager it ends as FINISHED, as FAILED by an exception, or as KILLED by SIGTERM or
    Ctrl-C (enter it after ``ray.init``, see :mod:`infra.termination`). Only :meth:`close` waits for
    the store.

    Attributes:
        token: the run's lasting name; with it :func:`start_run` continues this run from any folder.
    """

    def __init__(
        self,
        record: Record | None = None,
        uploader: Uploader | None = None,
        *,
        held: ExitStack | None = None,
    ) -> None:
        start = described(record.log) if record else {}
        self.token: str = start.get("token", "")
        self._created: int = start.get("created", 0)
        self._record, self._uploader = record, uploader
        self._files = record if uploader else None  # nobody would send what is not tracked
        self._held = held or ExitStack()
        self._termination = Termination()
        self._sampler: SystemSampler | None = None
        self._closed = self._disk_failed = False
        if uploader:
            uploader.start()
            if measures_system():
                self._sampler = SystemSampler(self._measured, self._created / 1000)
                self._sampler.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the store has been reached, and off rank 0."""
        return self._uploader.store.run_id if self._uploader else None

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers of a step; without a step, of the whole run, where the last ones count.

        Args:
            values: by name, such as ``train/loss``; NaN and infinities are kept as such.
            step: of the training clock, which only a resumed job turns back. A step that an earlier
                session recorded keeps its first value: MLflow can neither replace nor delete a
                point.

        Raises:
            ValueError: a name that the log has another use for.
        """
        numbers = {safe_key(key): float(value) for key, value in values.items()}
        taken = numbers.keys() & {"step", "second", "time"}
        if taken:
            raise ValueError(f"{taken}: the log keeps these names for its clocks; choose others")
        clock = {} if step is None else {"step": int(step)}
        self._append({**clock, "time": now(), **numbers})

    def log_dataset(self, name: str, digest: str, source: str, context: str = "training") -> None:
        """Record data that the run reads.

        Args:
            name: of the set.
            digest: SHA-256 of its manifest in hex; MLflow shows 36 digits, the profile all.
            source: path or URI.
            context: what it is used for: training, validation, curation.
        """
        dataset = {"name": name, "digest": digest, "source": source, "context": context}
        self._append({"dataset": dataset})

    def log_artifact(self, path: str | os.PathLike[str], folder: str = "") -> None:
        """Attach a file as it is now; the caller waits for a local copy only.

        Raises:
            OSError: the file cannot be read or copied.
        """
        if self._files:
            with Path(path).open("rb") as file:
                self._files.keep(file, f"{folder}/{Path(path).name}".lstrip("/"))

    def log_image(self, key: str, image: "Image | np.ndarray[Any, Any]", step: int) -> None:
        """Attach a picture to a step, for MLflow's image grid; few big ones are best.

        The grid opens at step 0 and is empty there unless that step has a picture.

        Args:
            key: its name; the same key and step again replaces it.
            image: PIL image, or uint8 ``[H, W]`` or ``[H, W, 3]``.
            step: of the training clock.
        """
        if self._files:
            from PIL import Image

            picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
            try:
                for name, data in grid_files(key, picture, int(step), self._created):
                    self._files.keep(io.BytesIO(data), name)
            except OSError as error:
                warn(f"{error}; the picture {key} of step {step} is lost")
            else:
                # Without the tag, MLflow's pages hide the image grid.
                self._append({"tags": {"mlflow.loggedImages": "True"}})

    def log_model(self, model: FinishedModel) -> None:
        """Register a finished model; the caller waits for a local copy of its files only."""
        if self._files:
            try:
                self._append({"model": keep(model, self._files)})
            except OSError as error:
                warn(f"{error}; {model.name} is not registered, and stays in {model.folder}")

    def close(self, status: str = "FINISHED", patience: float = 30.0) -> None:
        """End the run, send what is left, and say what could not be sent and where it waits.

        Args:
            status: FINISHED, FAILED or KILLED.
            patience: seconds to wait at most; a store that is away gets one attempt, not all of it.
        """
        if self._record is None or self._closed:
            return
        if self._sampler:
            self._sampler.stop()
        self._append({"end": {"status": status, "time": now()}})
        self._closed = True
        if self._uploader:
            self._uploader.close(patience)
            left, folder = self._uploader.left(), self._record.log.parent
            if left:
                warn(f"{left} wait in {folder}; a resumed run sends them, or: {command(folder)}")
        if self._record.unwritten:
            warn(f"{self._record.unwritten} records are lost: the disk refused them to the end")
        if self._uploader is None or not self._uploader.is_alive():
            self._record.close()
            self._held.close()

    def where(self) -> str:
        """Say in one line where to look at the run."""
        if self._uploader is None:
            return "not tracked by this process"
        uri, store = self._uploader.uri.rstrip("/"), self._uploader.store
        if self.run_id and uri.startswith("http"):
            page = f"{uri}/#/experiments/{store.experiment_id}/runs/{self.run_id}"
            return f"{page}?workflowType=machine_learning"  # else MLflow shows its chat pages
        look = f" (mlflow server --backend-store-uri {shlex.quote(uri)})"
        return f"run {self.run_id or self.token} in {uri}{look if uri.startswith(SQLITE) else ''}"

    def __enter__(self) -> Self:
        if self._record:
            self._termination.__enter__()
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
            self._termination.__exit__()

    def _append(self, line: Mapping[str, Any]) -> None:
        """Write a line of the log; a disk that refuses must not stop the job."""
        if self._record is None or self._closed:
            return
        try:
            self._record.append(line)
        except OSError as error:
            if not self._disk_failed:
                warn(f"{error}; records are kept in memory until the disk takes them")
            self._disk_failed = True

    def _measured(self, sample: Mapping[str, float], second: int) -> None:
        self._append({"second": second, "time": now(), **sample})


def start_run(  # noqa: PLR0913  (each is a thing of its own, and named by the caller)
    experiment: str,
    *,
    folder: Path,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    resume: Resume | None = None,
    track: bool = True,
    recorded: Callable[[], None] = lambda: None,
) -> Run:
    """Start recording a run, or go on with one, before the store has been reached.

    Continued is the run that MLFLOW_RUN_ID names, else that of ``resume``, else the one in
    ``folder`` if it has the same experiment, store and parameters and did not finish.

    Args:
        experiment: such as ``latent-pmrf/curate``; MLFLOW_EXPERIMENT_NAME overrides it.
        folder: where ``log.jsonl`` and what waits for the store are kept.
        name: shown in MLflow, which by default makes one up.
        params: the configuration, nested or flat.
        resume: the run and the step from which a resumed job goes on, and where it once began.
        track: send it to MLflow, with CPU, memory, disk, network and GPU every ten seconds unless
            MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false. Otherwise only the log is written: no
            pictures, files, models.
        recorded: called once ``log.jsonl`` names the run, before anything of it is sent.

    Raises:
        UsageError: an impossible MLFLOW_TRACKING_URI; a MLFLOW_RUN_ID that the store does not know.
        UserError: another process is recording a run in the folder.
    """
    if rank() != 0:
        return Run()
    uri = tracking_uri() if track else ""
    run_id = (os.environ.get("MLFLOW_RUN_ID") or None) if track else None
    if track:
        keep_quiet()
        # Imported here, not by the thread that needs it: threads that import the same libraries at
        # the same time may meet half-made modules.
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    if run_id:
        require_run(uri, run_id)
    flat = flatten(params or {})
    start = {
        "uri": without_password(uri),
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment,
        "params": digest(flat),
        "run_id": run_id,
        "name": name,
        "tags": {**provenance.tags(), **(resume.origin if resume else {})},
    }
    with ExitStack() as stack:
        stack.enter_context(exclusive(folder / STATE))
        token, step = (resume.token, resume.step) if resume else (None, None)
        record = take(folder, start, Resume(run_id or token, step))
        record.append({"params": flat})
        recorded()
        return Run(record, Uploader(record, uri) if track else None, held=stack.pop_all())

"""One stage of a job through Ray Data: units of work done in any order, with progress and times.

A unit is a small JSON value that says what to read and where to write; doing it twice writes the
same. Ray schedules and retries units, but whether a unit is done is decided by the files it wrote.
Workers return an error that the user can mend as a value, so that the user sees one sentence.
"""

import hashlib
import json
import os
import pickle
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from infra.errors import UsageError, UserError
from infra.s3.client import variables_for
from infra.storage import explained
from pipelines.jobs.attempts import attempt
from pipelines.jobs.cluster import check_answers, unreachable, without_cpus
from pipelines.jobs.progress import Watched, progress
from pipelines.jobs.ray_files import take_own_token, unwritable

ROOT = Path(__file__).resolve().parents[2]
CODE = ("datasets", "infra", "models", "pipelines")
"""Folders of the clone that the workers of a cluster get; whatever else lies in it stays here."""
OBJECT_STORE_BYTES = 256 << 20  # units and results are kilobytes; pixels never enter the store

T = TypeVar("T")
Worker = Callable[[dict[str, Any]], dict[str, Any]]


class Stopwatch:
    """Adds up how long each step of a worker took, so that the slowest one can be named."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a block as part of ``step``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(step, time.perf_counter() - start)

    def add(self, step: str, seconds: float) -> None:
        """Count seconds measured elsewhere; any thread may."""
        with self._lock:
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def between(self, step: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count the time that the consumer takes between two as ``step``."""
        for item in items:
            with self(step):
                yield item

    def total(self) -> float:
        """Return the seconds of all steps so far."""
        return sum(self.seconds.values())

    def take(self) -> dict[str, float]:
        """Return the seconds of each step so far, and begin again at zero."""
        taken, self.seconds = self.seconds, {}
        return taken


@dataclass(slots=True)
class StageTime:
    """How long a stage took, in wall-clock seconds and in the workers' seconds by step."""

    name: str
    wall: float = 0.0
    startup: float = 0.0
    """Seconds until the first unit began: to start processes and load modules."""
    done: int = 0
    steps: dict[str, float] = field(default_factory=dict)

    def add(self, result: dict[str, Any], began: float) -> None:
        """Count one unit's result; ``began`` is the time at which the stage began."""
        first = result["began"] - began
        self.startup = min(self.startup, first) if self.done else max(0.0, first)
        self.done += result["done"]
        for step, seconds in result["seconds"].items():
            self.steps[step] = self.steps.get(step, 0.0) + seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """The resources of one worker of a stage, and the number of workers."""

    cpus: float = 1.0
    """CPUs for each worker."""
    gpus: float = 0.0
    """GPUs for each worker."""
    workers: int | None = None
    """Number of workers; None takes as many as the cluster has CPUs for."""


class Engine(Protocol):
    """Something that carries out units of work: Ray, or a loop in this process."""

    times: list[StageTime]

    def run(
        self,
        name: str,
        units: Sequence[dict[str, Any]],
        worker: Callable[..., Worker],
        arguments: Sequence[Any],
        total: int | Watched,
        resources: Resources = Resources(),
    ) -> Iterator[dict[str, Any]]:
        """Do every unit; yield the results in any order."""
        ...

    def gpus(self) -> int:
        """Return how many GPUs there are to compute on."""
        ...

    def workers(self, resources: Resources) -> int:
        """Return how many workers a stage has."""
        ...


def started(engine: Engine | None, workers: int | None) -> AbstractContextManager[Engine]:
    """Return the engine that is given, or else Ray with so many workers, for a `with` block."""
    return RayEngine(workers) if engine is None else nullcontext(engine)


def a_gpu_each(engine: Engine, gpus: int | None, option: str, otherwise: str) -> Resources:
    """Give each worker one CPU and one GPU.

    Args:
        engine: where the work is done.
        gpus: to use; None takes all there are.
        option: that asks for GPUs, for the message.
        otherwise: what to do without one, for the message.

    Raises:
        UsageError: there are not so many, or none.
    """
    there = engine.gpus()
    wanted = there if gpus is None else gpus
    if not 0 < wanted <= there:
        raise UsageError(
            f"{option}: {wanted or 'a'} GPU wanted, {there} in the Ray cluster; {otherwise} "
            "(--dry-run says how slowly)"
        )
    return Resources(cpus=1, gpus=1, workers=wanted)


class RayEngine:
    """Runs stages on a local Ray, or on the one that RAY_ADDRESS names, inside a `with` block.

    Enter it before anything that handles signals: Ray installs its own handler of SIGTERM, in whose
    place the one from before is put back at the end.

    Args:
        workers: parallel workers; None takes every CPU of the cluster.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers
        self._handler: Any = None
        self.times: list[StageTime] = []

    def __enter__(self) -> Self:
        self._handler = signal.getsignal(signal.SIGTERM)
        try:
            self._start()
        except BaseException:
            self._restore_handler()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        self._restore_handler()

    def _restore_handler(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and self._handler is not None:  # None: one that Python did not install
            signal.signal(signal.SIGTERM, self._handler)

    def run(
        self,
        name: str,
        units: Sequence[dict[str, Any]],
        worker: Callable[..., Worker],
        arguments: Sequence[Any],
        total: int | Watched,
        resources: Resources = Resources(),
    ) -> Iterator[dict[str, Any]]:
        """Do every unit with ``worker(*arguments)``, one instance per process; yield their results.

        Args:
            name: name of the stage in the progress bar and the report.
            units: JSON values.
            worker: an importable class whose instances map a unit to
                ``{"done": items, "seconds": {step: s}}``.
            arguments: of the worker's constructor.
            total: items in all units, for the progress bar.
            resources: the resources of each worker.

        Raises:
            UserError: a worker failed for a reason that the user can mend, or there are no CPUs.
        """
        if not units:
            return
        import ray

        size = min(len(units), self.workers(resources))
        stage = StageTime(name)
        self.times.append(stage)
        start, began = time.perf_counter(), time.time()
        rows = [{"unit": json.dumps(unit)} for unit in units]
        made = pickle.dumps((worker, tuple(arguments), uuid.uuid4().hex))
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        if resources.gpus:  # an actor keeps its GPU; a task's process gives it back when it ends
            results = dataset.map(
                _Actor,
                fn_constructor_args=(made,),
                compute=ray.data.ActorPoolStrategy(size=size),
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
            )
        else:  # the processes that Ray has started anyway serve every stage
            results = dataset.map(
                do_unit,
                fn_args=(made,),
                compute=ray.data.TaskPoolStrategy(size=size),
                num_cpus=resources.cpus,
            )
        with progress(name, total) as advance:
            for row in results.iter_rows():
                result: dict[str, Any] = json.loads(row["result"])
                if "failure" in result:
                    raise UserError(result["failure"])
                stage.add(result, began)
                advance(result["done"])
                yield result
        stage.wall = time.perf_counter() - start

    def gpus(self) -> int:
        """Return the GPUs of the Ray cluster."""
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    def workers(self, resources: Resources) -> int:
        """Return the workers of a stage: as many as it wants, or as was said, or as CPUs.

        Raises:
            UserError: the cluster has no CPUs, for which Ray would wait in silence.
        """
        import ray

        cpus = int(ray.cluster_resources().get("CPU", 0))
        if not cpus:
            raise without_cpus()
        return resources.workers or self._workers or cpus

    def _start(self) -> None:
        import logging

        start = time.perf_counter()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
        address = os.environ.get("RAY_ADDRESS")
        if address:
            options = {"log_to_driver": False, "runtime_env": for_workers()}
        else:
            options["num_cpus"] = self._workers
            options["object_store_memory"] = OBJECT_STORE_BYTES
            take_own_token()
        local = "num_cpus" in options
        try:
            check_answers(address or "")
            with _quiet() if local else nullcontext():
                ray.init(logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise unreachable(error) from error
        except OSError as error:
            raise unwritable(error) from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        self.times.append(StageTime("start Ray", wall=time.perf_counter() - start))


def for_workers() -> dict[str, Any]:
    """Return what the workers of a cluster are sent, as a runtime environment of Ray's.

    They are told where the bucket is. Keys they have from their own machine, because what is sent
    stands in the logs of Ray.

    Raises:
        UserError: the AWS settings of this machine cannot be used.
    """
    return {
        "py_modules": [str(ROOT / name) for name in CODE],
        "excludes": ["__pycache__"],
        "env_vars": variables_for("the workers of the Ray cluster"),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what Ray's C++ code prints about its log level; exceptions are still raised."""
    saved, silent = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(silent)


class _Actor:
    """A process of Ray's that does units with one worker and keeps a GPU."""

    def __init__(self, made: bytes) -> None:
        self._made = made

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return do_unit(row, self._made)


def do_unit(row: dict[str, Any], made: bytes) -> dict[str, Any]:
    """Do the unit of a row in one of Ray's processes.

    Args:
        row: the unit, as JSON.
        made: the pickled class of the worker, its arguments, and the name of the stage's run.
    """

    def work(unit: dict[str, Any]) -> dict[str, Any]:
        return _worker(made, row["unit"])(unit)

    return {"result": json.dumps(carried_out(work, json.loads(row["unit"])))}


_held: dict[bytes, Worker] = {}
"""The worker of this process, which it keeps until it is given another kind of unit."""


def _worker(made: bytes, unit: str) -> Worker:
    """Make the worker, unless this process has it.

    Ray does a unit again as often as its process dies; of a process that dies while the worker is
    made, a note is left, so that this ends.
    """
    if made not in _held:
        worker, arguments, session = pickle.loads(made)
        name = hashlib.sha256(made + unit.encode()).hexdigest()[:16]
        notes = Path(tempfile.gettempdir(), f"latent-pmrf-{os.getuid()}")
        with attempt(notes, name, session, "the start, which loads modules and weights"):
            held = worker(*arguments)
        _held.clear()
        _held[made] = held
    return _held[made]


def carried_out(work: Worker, unit: dict[str, Any]) -> dict[str, Any]:
    """Do one unit; returns ``{"failure": sentence}`` for an error that the user can mend."""
    began = time.time()
    try:
        return {**work(unit), "began": began}
    except UserError as error:
        return {"failure": str(error)}
    except OSError as error:
        return {"failure": str(explained(error, error.filename or "input or output"))}

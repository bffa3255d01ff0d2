"""One run in an MLflow tracking store: how to ask for things so that asking twice changes nothing.

* A run is looked for by a tag that holds our own name for it before it is created.
* A point is (key, step, time, value), all fixed when it was recorded; MLflow's database keeps one
  row of equal points.
* A job that resumes from a checkpoint records some steps again. MLflow can neither replace nor
  delete a point, so the first stands: a key's points arrive in the order of their steps, and those
  up to the last step that the store had when a session began are dropped.
* A file keeps its name; sent again, it overwrites itself.
* A model's version is looked for by its run and the digest of its weights before it is created.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.errors import UsageError
from infra.tracking.models import DIGEST_TAG
from infra.tracking.rules import (
    MAX_DIGEST,
    MAX_KEY,
    MAX_PAIRS,
    MAX_POINTS,
    SQLITE,
    cut,
    without_password,
)

TOKEN_TAG = "latent_pmrf.token"
PARENT_TAG = "parent.run"  # the token of the run that this one was forked from


class RunInStore:
    """The store's side of a run.

    Attributes:
        run_id: MLflow's id of the run, once known.
        experiment_id: MLflow's id of its experiment, once known.
        last_steps: the last step the store held of each key when the session began.
    """

    def __init__(self, uri: str) -> None:
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.last_steps: dict[str, int] = {}
        self._uri = uri
        self._opened: Any = None

    def begin(self, start: Mapping[str, Any]) -> None:
        """Create the run, or take up the one that we created before."""
        experiment = self._client.get_experiment_by_name(start["experiment"])
        tags = {**start["tags"], TOKEN_TAG: start["token"]}
        self.run_id = start["run_id"] or self.run_id
        if self.run_id is None and experiment is not None:
            self.run_id = self._id_of(start["token"], [experiment.experiment_id])
        if PARENT_TAG in tags:
            everywhere = [one.experiment_id for one in self._client.search_experiments()]
            if parent := self._id_of(tags[PARENT_TAG], everywhere):
                tags["mlflow.parentRunId"] = parent
        if self.run_id is not None:
            run = self._client.get_run(self.run_id)
            self._client.update_run(self.run_id, status="RUNNING")
            self.last_steps = {point.key: point.step for point in run.to_proto().data.metrics}
            self._add(tags, run.data.tags, "tags")
        else:
            home = experiment.experiment_id if experiment else self._new_experiment(start)
            run = self._client.create_run(home, start["time"], tags, start["name"])
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id

    def points(self, values: Mapping[str, float], time: int, step: int | None = None) -> list[Any]:
        """Turn numbers into MLflow's points, less those of steps that the store had.

        Args:
            values: by name.
            time: in milliseconds since 1970.
            step: None for numbers of the whole run, which are never left out.
        """
        from mlflow.entities import Metric

        return [
            Metric(key, value, time, step or 0)
            for key, value in values.items()
            if step is None or step > self.last_steps.get(key, -1)
        ]

    def add_points(self, points: Sequence[Any]) -> None:
        """Store points of :meth:`points`."""
        for first in range(0, len(points), MAX_POINTS):
            self._client.log_batch(self.run_id, metrics=points[first : first + MAX_POINTS])

    def add_params(self, params: Mapping[str, str]) -> None:
        """Store parameters; of one that has another value already, tell the new one in a tag."""
        self._add(params, self._client.get_run(self.run_id).data.params, "params")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Store tags; the last value counts."""
        self._add(tags, {}, "tags")

    def add_dataset(self, dataset: Mapping[str, str]) -> None:
        """Store what the run read: a name, where it lies, and the digest of its manifest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=dataset["name"],
            digest=dataset["digest"][:MAX_DIGEST],
            source_type="uri",
            source=json.dumps({"uri": dataset["source"]}),
            profile=json.dumps({"digest": dataset["digest"]}),
        )
        context = InputTag("mlflow.data.context", dataset["context"])
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(entity, [context])])

    def add_file(self, path: Path, folder: str) -> None:
        """Store a file under its own name in a folder of the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def has_model(self, model: Mapping[str, Any]) -> bool:
        """Tell whether this run has registered these weights before."""
        ours = f"name = '{model['name']}' and run_id = '{self.run_id}'"
        found = self._client.search_model_versions(ours)
        return any(version.tags.get(DIGEST_TAG) == model["digest"] for version in found)

    def add_model(self, model: Mapping[str, Any]) -> None:
        """Make a folder of the run's artifacts a version of a registered model."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model["name"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        artifacts = self._client.get_run(self.run_id).info.artifact_uri
        self._client.create_model_version(
            model["name"],
            # Not runs:/…, which a registry of its own (MLFLOW_REGISTRY_URI) could not resolve.
            f"{artifacts}/{model['folder']}",
            self.run_id,
            tags=model["tags"],
            description=model["description"],
            await_creation_for=0,  # a store that has to copy the files does so without us
        )

    def end(self, end: Mapping[str, Any]) -> None:
        """Note how and when the run ended."""
        self._client.set_terminated(self.run_id, end["status"], end["time"])

    @property
    def _client(self) -> Any:
        """Open the store at the first use; an sqlite store is created, with its folder."""
        from mlflow import MlflowClient

        if self._opened is None:
            if self._uri.startswith(SQLITE):
                Path(self._uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
            self._opened = MlflowClient(tracking_uri=self._uri)
        return self._opened

    def _id_of(self, token: str, experiments: Sequence[str]) -> str | None:
        """Look a run up by our own name for it."""
        ours = f"tags.`{TOKEN_TAG}` = '{token}'"
        found = self._client.search_runs(experiments, ours)
        return found[0].info.run_id if found else None

    def _new_experiment(self, start: Mapping[str, Any]) -> str:
        """Create the experiment; an sqlite store has its artifacts beside it, wherever we run."""
        name, location = start["experiment"], None
        if self._uri.startswith(SQLITE):
            folder = Path(self._uri.removeprefix(SQLITE)).parent / "mlruns"
            location = (folder / re.sub(r"[^\w.-]+", "-", name)).as_uri()
        identifier: str = self._client.create_experiment(name, location)
        return identifier

    def _add(self, pairs: Mapping[str, str], known: Mapping[str, str], kind: str) -> None:
        """Store the parameters or tags that are not known; those known otherwise become tags."""
        from mlflow.entities import Param, RunTag

        make = {"params": Param, "tags": RunTag}[kind]
        new = [make(key, cut(value)) for key, value in pairs.items() if key not in known]
        changed = [
            RunTag(f"changed.{key}"[:MAX_KEY], cut(f"{known[key]} -> {value}"))
            for key, value in pairs.items()
            if known.get(key, value) != value
        ]
        for name, entities in ((kind, new), ("tags", changed)):
            for first in range(0, len(entities), MAX_PAIRS):
                chunk = entities[first : first + MAX_PAIRS]
                self._client.log_batch(self.run_id, **{name: chunk})


def require_run(uri: str, run_id: str) -> None:
    """Refuse a run id that the store does not know; a store that is away cannot be asked.

    Raises:
        UsageError: the store has no such run.
    """
    from mlflow import MlflowClient

    try:
        MlflowClient(tracking_uri=uri).get_run(run_id)
    except Exception as error:  # as in Uploader.attempt
        unknown = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
        if getattr(error, "error_code", None) in unknown:
            raise UsageError(
                f"MLFLOW_RUN_ID={run_id}: {without_password(uri)} has no such run; correct it, or "
                "unset it to start a new run"
            ) from error

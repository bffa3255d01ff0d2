"""The output folder of a job: held by one process, refused if it is another set's, tracked."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets.shards import MANIFEST, lacking, shard_sizes
from infra import storage
from infra.config import differences, flat
from infra.errors import UsageError
from infra.tracking.run import start_run

TRACKING = "tracking"  # in a job's memory: what its runs record


class SetFolder:
    """The output folder of a job, whose own files are in one hidden folder of it.

    Args:
        path: the folder; it is made when it is held.
        state: name of the hidden folder.
        noun: name of the kind of set for messages, such as "a curated set".
    """

    def __init__(self, path: Path, state: str, noun: str) -> None:
        self.path = path
        self.state = path / state
        self.noun = noun

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            UsageError: it holds something else; nothing was written.
            UserError: another process holds it, or it cannot be written.
        """
        if self.path.is_dir() and not self.state.exists() and any(self.path.iterdir()):
            raise UsageError(
                f"--output {self.path}: not empty and not {self.noun}; give a new folder"
            )
        with storage.exclusive(self.state):
            storage.remove_partial(self.path)
            yield

    def claim(self, record: str, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Refuse the set of another configuration, or empty the hidden folder to overwrite the set.

        The published files stay until the new set takes their place.

        Args:
            record: name of the JSON file in the hidden folder that holds the set's identity.
            identity: the settings that the set depends on.
            overwrite: whether a set of another identity may be replaced.

        Raises:
            UsageError: names the fields that differ.
        """
        path = self.state / record
        if not path.exists():
            return
        changed = differences(flat(plain(identity)), flat(json.loads(path.read_bytes())))
        if not changed:
            return
        if not overwrite:
            raise UsageError(
                f"--output {self.path} holds a set of another configuration ("
                f"{'; '.join(changed)}); give another folder, or --overwrite to replace it"
            )
        for entry in self.state.iterdir():
            if entry.name not in ("lock", TRACKING):  # what MLflow has not got yet stays
                storage.remove_tree(entry) if entry.is_dir() else entry.unlink()

    def lacks(self, manifest: Mapping[str, Any]) -> list[str]:
        """List the files of a manifest that are absent or have another length."""
        files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        return lacking(self.path, shard_sizes(manifest) | files)

    def tracked(
        self,
        experiment: str,
        settings: Mapping[str, Any],
        make: Callable[[], dict[str, Any]],
        metrics: Callable[[dict[str, Any]], dict[str, float]],
        *,
        track: bool,
    ) -> str:
        """Make the set inside an MLflow run; returns a line that says where to see the run.

        Args:
            experiment: such as ``latent-pmrf/curate``.
            settings: the run's parameters.
            make: makes the set and returns its manifest.
            metrics: returns the run's numbers for a manifest.
            track: whether there is a run; without one the line is empty.
        """
        if not track:
            make()
            return ""
        name = self.path.name
        with start_run(experiment, folder=self.state / TRACKING, name=name, params=settings) as run:
            manifest = make()
            context = experiment.rpartition("/")[2]
            run.log_dataset(name, storage.sha256(self.path / MANIFEST), str(self.path), context)
            run.log_metrics(metrics(manifest))
            run.log_artifact(self.path / "report.html")
            run.log_artifact(self.path / MANIFEST)
            run.close()
            return f"MLflow: {run.where()}\n"


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields as they are after they were written as JSON and read again."""
    values: dict[str, Any] = json.loads(json.dumps(fields))
    return values

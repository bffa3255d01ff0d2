"""The output folder of a job: held by one process, refused if it is another set's, tracked.

Beside what a job keeps for itself, its hidden folder has

    published.json      a copy of the manifest, written just before the set is published
    finished.json       written last of all: the digest of the manifest whose page and run are done
    overwriting.json    there from the moment that --overwrite discards a set until another finishes
    tracking/           what the job's runs record; of a set in a bucket a copy of its log, which
                        another machine goes on with
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import shards
from datasets.shards import MANIFEST, lacking, shard_sizes
from infra import paths
from infra.config import differences, digest, flat, pretty_json
from infra.errors import UsageError
from infra.paths import AnyPath
from infra.tracking.record import LOG, Resume, described, put_in_place, read
from infra.tracking.rules import flatten
from infra.tracking.run import start_run

TRACKING = "tracking"
PUBLISHED, FINISHED, OVERWRITING = "published.json", "finished.json", "overwriting.json"
PAGE = "report.html"
KEPT = ("lock", TRACKING, "sources")
"""What is not discarded: the lock, what MLflow has not got yet, indexes of archives."""


class SetFolder:
    """The output folder of a job, whose own files are in one hidden folder of it.

    Args:
        path: the folder; it is made when it is held.
        state: name of the hidden folder.
        noun: name of the kind of set for messages, such as "a curated set".
    """

    def __init__(self, path: AnyPath, state: str, noun: str) -> None:
        self.path = path
        self.state = path / state
        self.noun = noun
        self._check_held: Callable[[], None] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            UsageError: it holds something else; nothing was written.
            UserError: another process holds it, or it cannot be written.
        """
        self._refuse_other()
        with paths.exclusive(self.state) as self._check_held:
            paths.remove_partial(self.path)
            yield

    def check(self) -> None:
        """Refuse an output folder that the job would refuse; leaves nothing there.

        Raises:
            UserError: it holds something else, or cannot be written.
        """
        self._refuse_other()
        paths.check_writable(self.path)

    def _refuse_other(self) -> None:
        if self.path.is_file():
            raise UsageError(f"--output {self.path}: this is a file, not a folder; give another")
        is_other = self.path.is_dir() and not self.state.is_dir()
        if is_other and any(paths.first_below(self.path, 1)):
            raise UsageError(
                f"--output {self.path}: not empty and not {self.noun}; give a new folder"
            )

    def claim(self, record: str, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Refuse the set of another configuration, unless it is to be overwritten.

        Args:
            record: name of the JSON file in the hidden folder that holds the set's identity.
            identity: the settings that the set depends on.
            overwrite: whether to make the set anew, be it of this configuration or of another.

        Raises:
            UsageError: names the fields that differ.
        """
        found = None if overwrite else paths.read_if_there(self.state / record)
        if found is None:
            return
        changed = differences(flat(plain(identity)), flat(json.loads(found)))
        if changed:
            raise UsageError(
                f"--output {self.path} holds a set of another configuration ("
                f"{'; '.join(changed)}); give another folder, or --overwrite to replace it"
            )

    def start_over(self, identity: Mapping[str, Any]) -> None:
        """Discard what the job has kept; the published files stay until the new set replaces them.

        The same command, run again after a kill, goes on with the new set and does not start over.

        Args:
            identity: the settings that the set depends on.
        """
        if self.has_started_over(identity):
            return
        for entry in paths.children(self.state):
            if entry.name not in KEPT:
                entry.unlink() if entry.is_file() else paths.remove_tree(entry)
        paths.write_bytes(self.state / OVERWRITING, pretty_json(identity))

    def has_started_over(self, identity: Mapping[str, Any]) -> bool:
        """Tell whether --overwrite has discarded the earlier set, and this one is unfinished."""
        found = paths.read_if_there(self.state / OVERWRITING)
        return found is not None and json.loads(found) == plain(identity)

    def is_discarded(self) -> bool:
        """Tell whether the published set is one that --overwrite is about to replace."""
        return (self.state / OVERWRITING).is_file() and not (self.state / PUBLISHED).is_file()

    def publish(self, staging: AnyPath) -> None:
        """Publish a staged set; killed at any point, the same call finishes the work."""
        self._check_held()
        paths.write_bytes(self.state / PUBLISHED, (staging / MANIFEST).read_bytes())
        shards.publish(staging, self.path)

    def replace_equal(self, staging: AnyPath, name: str, manifest: Mapping[str, Any]) -> bool:
        """Put a file that was made again in its place, if it is the one of the manifest.

        Returns:
            Whether it is; otherwise nothing was replaced.
        """
        if paths.sha256(staging / name) != shards.file_entries(manifest)[name]["sha256"]:
            return False
        paths.move(staging / name, self.path / name)
        return True

    def restore_manifest(self) -> list[str]:
        """Put back the manifest of the published set if it has changed; returns its name then."""
        content, manifest = paths.read_if_there(self.state / PUBLISHED), self.path / MANIFEST
        is_publishing = bool(paths.glob(self.state, f"*/{MANIFEST}"))
        if content is None or is_publishing or paths.read_if_there(manifest) == content:
            return []
        paths.write_bytes(manifest, content)
        return [MANIFEST]

    def is_finished(self, *, track: bool) -> bool:
        """Tell whether the published set has all that was promised: its page, and its run.

        Args:
            track: whether a run was promised.
        """
        mark = paths.read_if_there(self.state / FINISHED)
        if mark is None or not (self.path / PAGE).is_file():
            return False
        said, found = json.loads(mark), self.manifest_digest()
        is_tracked: bool = said["tracked"]
        return said["manifest"] == found and (is_tracked or not track)

    def manifest_digest(self) -> str | None:
        """Hash the manifest of the published set; None if there is none."""
        content = paths.read_if_there(self.path / MANIFEST)
        return None if content is None else hashlib.sha256(content).hexdigest()

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
        """Make and finish the set inside an MLflow run; returns a line that says where to see it.

        A set is finished when its page is written and its run is recorded, and the last thing
        written is a mark that says so. Each of these steps may be repeated, so that a job that was
        killed between them is finished by the next one, whose run is the same.

        Args:
            experiment: such as ``latent-pmrf/curate``.
            settings: the run's parameters.
            make: makes the set with its page and returns its manifest.
            metrics: returns the run's numbers for a manifest.
            track: whether there is a run; without one the line is empty.
        """
        if not track:
            make()
            self._mark_finished(tracked=False)
            return ""
        name, folder = self.path.name, paths.local_twin(self.state / TRACKING)
        self._bring_log(folder)
        resume = self._recorded(folder / LOG, settings)
        with start_run(
            experiment,
            folder=folder,
            name=name,
            params=settings,
            resume=resume,
            recorded=lambda: self._keep_log(folder),
        ) as run:
            manifest = make()
            context = experiment.rpartition("/")[2]
            run.log_dataset(name, paths.sha256(self.path / MANIFEST), str(self.path), context)
            run.log_metrics(metrics(manifest))
            for artifact in (PAGE, MANIFEST):
                with paths.fetched(self.path / artifact) as local:
                    run.log_artifact(local)
            run.close()
            self._keep_log(folder)
            self._mark_finished(tracked=True)
            return f"MLflow: {run.where()}\n"

    def _mark_finished(self, *, tracked: bool) -> None:
        mark = {"manifest": self.manifest_digest(), "tracked": tracked}
        paths.write_bytes(self.state / FINISHED, pretty_json(mark))
        (self.state / OVERWRITING).unlink(missing_ok=True)

    def _bring_log(self, folder: Path) -> None:
        """Bring the log of the folder's run, if another machine has begun that."""
        kept = self.state / TRACKING / LOG
        if kept != folder / LOG and kept.is_file():
            with paths.fetched(kept) as log:
                put_in_place(folder, log)

    def _keep_log(self, folder: Path) -> None:
        """Keep the log of the run with the set, by which another machine goes on with the run."""
        kept = self.state / TRACKING / LOG
        if kept != folder / LOG:
            paths.write_bytes(kept, (folder / LOG).read_bytes())

    def _recorded(self, log: Path, settings: Mapping[str, Any]) -> Resume | None:
        """Return the run that has recorded the published set already, if its job then died."""
        start, found = described(log), self.manifest_digest()
        if found is None or start.get("params") != digest(flatten(settings)):
            return None
        is_same = any(line.get("dataset", {}).get("digest") == found for line, _ in read(log))
        return Resume(start["token"]) if is_same and not self.is_finished(track=True) else None


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields as they are after they were written as JSON and read again."""
    values: dict[str, Any] = json.loads(json.dumps(fields))
    return values

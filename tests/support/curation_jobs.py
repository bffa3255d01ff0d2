"""Curation without Ray: the same workers in this process, and small jobs for them."""

import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import shards
from infra.errors import UserError
from infra.paths import AnyPath
from pipelines.curate.config import CropRule, CurateConfig, CutRule
from pipelines.curate.job import Curation
from pipelines.jobs.scorer_choice import ScorerChoice
from pipelines.jobs.stage import Resources, StageTime, Worker, carried_out

OPTIONS = {
    "crop": {name: name for name in ("mode", "size", "stride")},
    "cut": {field.name: field.name for field in dataclasses.fields(CutRule)},
    "scorer": {
        **{"scorer": "name", "scorer_weights": "weights", "scorer_prompt": "prompt"},
        "scorer_batch": "batch",
    },
}
"""Where the value of an option lies in a configuration: part -> option -> field."""


class InProcess:
    """An engine without Ray: the same workers, one after the other, in this process."""

    def __init__(self) -> None:
        self.times: list[StageTime] = []
        self.units: list[tuple[str, dict[str, Any]]] = []
        self._steps: dict[str, set[str]] = {}

    def run(
        self,
        name: str,
        units: Sequence[dict[str, Any]],
        worker: Callable[..., Worker],
        arguments: Sequence[Any],
        total: int,
        resources: Resources | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Do every unit, backwards: no result may depend on the order."""
        self.times.append(StageTime(name))
        sent = pickle.dumps((worker, tuple(arguments)))  # as Ray sends them to a process
        worker, arguments = pickle.loads(sent)
        work = worker(*arguments) if units else None
        for unit in reversed(units):
            assert work is not None
            self.units.append((name, unit))
            result = carried_out(work, json.loads(json.dumps(unit)))
            if "failure" in result:
                raise UserError(result["failure"])
            self._steps.setdefault(name, set()).update(result["seconds"])
            yield result

    def gpus(self) -> int:
        """Return none."""
        return 0

    def workers(self, resources: Resources) -> int:
        """Return one: this process."""
        return 1

    def steps(self, name: str) -> set[str]:
        """Return the steps that the workers of a stage took."""
        return self._steps[name]

    def count(self, name: str) -> int:
        """Return how many units of a stage were done."""
        return sum(stage == name for stage, _ in self.units)


def config(source: Path, output: AnyPath | str, **fields: Any) -> CurateConfig:
    """Return a small job: 64-pixel patches, four samples a shard; fields by their options."""
    defaults: dict[str, Any] = {
        "input": (str(source),),
        "output": str(output),
        "size": 64,
        "stride": 48,
        "scorer": "brisque",
        "threshold": 60.0,
        "samples_per_shard": 4,
        "val_fraction": 0.3,
        "track": False,
    }
    given = defaults | fields
    parts: dict[str, dict[str, Any]] = {
        part: {field: given.pop(option) for option, field in names.items() if option in given}
        for part, names in OPTIONS.items()
    }
    return CurateConfig(
        crop=CropRule(**parts["crop"]),
        cut=CutRule(**parts["cut"]),
        scorer=ScorerChoice(**parts["scorer"]),
        **given,
    )


def run(source: Path, output: AnyPath | str, **fields: Any) -> InProcess:
    """Curate in this process."""
    engine = InProcess()
    Curation(config(source, output, **fields)).run(engine)
    return engine


def published(folder: AnyPath) -> dict[str, bytes]:
    """Return the bytes of everything that makes the set: shards, tables, manifest."""
    manifest = shards.read_manifest(folder)
    assert manifest is not None
    names = [entry["name"] for entry in manifest["shards"]] + list(manifest["files"])
    return {name: (folder / name).read_bytes() for name in [*names, shards.MANIFEST]}

"""Restoration without Ray: the same workers in this process, and small jobs for them."""

import dataclasses
from pathlib import Path
from typing import Any

from infra.paths import AnyPath
from pipelines.jobs.stage import Engine
from pipelines.restore.config import RestoreConfig, RestoreRule, WholeRule
from pipelines.restore.job import Restoration
from tests.support.curation_jobs import InProcess


def job(given: object, output: object, model: object, **fields: Any) -> RestoreConfig:
    """Return a small job on CPUs; a rule's fields go into it."""
    fields = {"device": "cpu", "model": str(model), **fields}
    parts = {
        part: cls(
            **{f.name: fields.pop(f.name) for f in dataclasses.fields(cls) if f.name in fields}
        )
        for part, cls in (("rule", RestoreRule), ("whole", WholeRule))
    }
    inputs = given if isinstance(given, tuple) else (given,)
    return RestoreConfig(input=tuple(map(str, inputs)), output=str(output), **parts, **fields)


def restore(
    given: object, output: object, model: object, engine: Engine | None = None, **fields: Any
) -> InProcess:
    """Restore in this process; returns the engine that did it."""
    used = InProcess() if engine is None else engine
    Restoration(job(given, output, model, **fields)).run(used)
    assert isinstance(used, InProcess)
    return used


def made(folder: AnyPath) -> dict[str, bytes]:
    """Return the bytes of every file that a job leaves for its user, by name."""
    assert isinstance(folder, Path)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: path.read_bytes()
        for name, path in sorted(found.items())
        if path.is_file() and not name.startswith(".")
    }


def pictures(folder: AnyPath) -> dict[str, bytes]:
    """Return the bytes of the restored pictures and of what is said of each, by name."""
    return {n: data for n, data in made(folder).items() if n.endswith((".png", ".json"))}

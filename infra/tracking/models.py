"""A finished model as a version of a registered one: its files, and the signature that names them.

The files become a folder of the run's artifacts that is called after their weights, so that the
files of a version stay what they were when its run is trained on and registered again. Beside them
lie ``signature.json``, with the bytes and SHA-256 of every file, and ``MLmodel``, from which
MLflow's page of the version takes inputs and outputs. The latter claims no flavor, because none of
MLflow's loaders knows these files.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.storage import TEMPORARY_SUFFIX
from infra.tracking.record import Record
from infra.tracking.rules import flatten

SIGNATURE = "signature.json"
MLMODEL = "MLmodel"
DIGEST_TAG = "weights_sha256"
MAX_DESCRIPTION = 5000  # characters, MLflow's limit
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedModel:
    """What is registered."""

    name: str
    """Of the registered model."""
    folder: Path
    """Its files, as its users read them."""
    digest: str
    """SHA-256 of the weights in hex; a run has one version of each digest."""
    facts: Mapping[str, Any]
    """What else tells it from others, nested as one likes: step, data."""
    inputs: Shapes
    """Shape of each float32 input; -1 where any length will do."""
    outputs: Shapes
    """Of each output, likewise."""
    use: str
    """What reads the folder, in a line of Markdown."""


def keep(model: FinishedModel, record: Record) -> dict[str, Any]:
    """Copy a model's files into a record; returns the line that registers them.

    They are copied, not linked: whoever writes the folder again must not change what waits here.
    The digests are those of the copies, taken on the way.

    Raises:
        OSError: a file cannot be read or copied.
    """
    target = f"{model.name}-{model.digest[:12]}"
    files = []
    for path in sorted(model.folder.rglob("*")):
        if path.is_file() and not path.name.endswith(TEMPORARY_SUFFIX):
            name = path.relative_to(model.folder).as_posix()
            with path.open("rb") as file:
                size, sha256 = record.keep(file, f"{target}/{name}")
            files.append({"path": name, "bytes": size, "sha256": sha256})
    facts = {**model.facts, DIGEST_TAG: model.digest}
    signature = json.dumps({"model": model.name, **facts, "files": files}, indent=1) + "\n"
    shapes = _mlmodel(target, model.inputs, model.outputs)
    for name, text in ((SIGNATURE, signature), (MLMODEL, shapes)):
        record.keep(io.BytesIO(text.encode()), f"{target}/{name}")
    listed = {file["path"]: f"{file['bytes']} bytes, SHA-256 {file['sha256']}" for file in files}
    tags = flatten({**facts, "file": listed})
    lines = [f"- {name}: {value}" for name, value in tags.items()]
    return {
        "name": model.name,
        "folder": target,
        "digest": model.digest,
        "tags": tags,
        "description": "\n".join([*lines, "", model.use])[:MAX_DESCRIPTION],
    }


def _mlmodel(folder: str, inputs: Shapes, outputs: Shapes) -> str:
    """Write the file that MLflow's pages read shapes from; JSON is YAML too."""
    signature = {
        side: json.dumps([_tensor(name, shape) for name, shape in shapes.items()])
        for side, shapes in (("inputs", inputs), ("outputs", outputs))
    }
    content = {"artifact_path": folder, "flavors": {}, "signature": signature}
    return json.dumps(content, indent=1) + "\n"


def _tensor(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    spec = {"dtype": "float32", "shape": list(shape)}
    return {"name": name, "type": "tensor", "tensor-spec": spec}

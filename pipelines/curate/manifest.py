"""The manifest of an image set and its tables, as functions of what was scored and written.

What a manifest says is either found again in the shards and tables, or it is repeated in the
metadata of `scores.parquet` (`REPEATED`), so that `verify` can compare every value with a second
one.
"""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets import shards
from datasets.names import is_own_name
from datasets.sets import FORMATS
from datasets.sources import input_digest
from datasets.unusable import BROKEN, TRANSIENT
from infra.config import canonical_json
from pipelines.curate.selection import count_copies, count_reasons
from pipelines.jobs.scorers import ScorerInfo

FORMAT = FORMATS["image set"][-1]
SCORES_FILE = "scores.parquet"
IGNORED_FILE = "ignored.parquet"
ENCODERS = (
    *("pillow", "pi-heif", "simplejpeg", "tifffile"),
    *("opencv-python-headless", "numpy", "pyarrow"),
)
REPEATED = ("format", "config", "scorer", "versions")


def claims(config: Mapping[str, Any], scorer: ScorerInfo, threshold: float | None) -> Any:
    """Return the part of a manifest that no shard or table could tell: its `REPEATED` entries."""
    return {
        "format": FORMAT,
        "config": dict(config),
        "scorer": {
            **scorer.identity(),
            "scale": list(scorer.scale),
            "higher_is_better": scorer.higher_is_better,
            "threshold": threshold,
        },
        "versions": {"python": platform.python_version(), **encoders()},
    }


def encoders() -> dict[str, str]:
    """Return the versions of the libraries that the bytes of a set depend on."""
    return {name: metadata.version(name) for name in ENCODERS}


def scores_bytes(scores: pa.Table, manifest: Mapping[str, Any]) -> bytes:
    """Return `scores.parquet` as it lies beside a manifest, or beside these claims of one.

    Args:
        scores: rows of `datasets.sample.SCORES`.
        manifest: has the `REPEATED` entries.
    """
    scorer = {
        name: value
        for name, value in manifest["scorer"].items()
        if name not in ("scale", "higher_is_better", "threshold")
    }
    repeated = {name: manifest[name] for name in REPEATED}
    described = {"scorer": canonical_json(scorer), "manifest": canonical_json(repeated)}
    return shards.parquet_bytes(scores.replace_schema_metadata(described))


def counted(
    scores: pa.Table, ignored: pa.Table, written: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the entries of a manifest that follow from its tables and its shards.

    Args:
        scores: rows of `datasets.sample.SCORES`.
        ignored: rows of `ignored.parquet`.
        written: the manifest's entries of the shards.
    """
    images = scores.group_by("source").aggregate(
        [("source_sha256", "min"), ("source_bytes", "min"), ("file", "min")]
    )
    digests = (sha or "" for sha in images["source_sha256_min"].to_pylist())
    dropped = count_reasons(scores)
    return {
        "input": {
            "images": images.num_rows,
            "bytes": pc.sum(images["source_bytes_min"]).as_py(),
            "digest": input_digest(zip(images["source"].to_pylist(), digests, strict=True)),
            "copies": count_copies(scores),
            "broken": sum(count for reason, count in dropped.items() if reason in BROKEN),
            "transient": sum(count for reason, count in dropped.items() if reason in TRANSIENT),
            "renamed": sum(not is_own_name(file) for file in images["file_min"].to_pylist()),
            "ignored": dict(sorted(Counter(ignored["kind"].to_pylist()).items())),
        },
        "totals": {
            "candidates": scores.num_rows,
            "samples": sum(entry["samples"] for entry in written),
            "shards": len(written),
            "bytes": sum(entry["bytes"] for entry in written),
        },
        "dropped": dropped,
    }

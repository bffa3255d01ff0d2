"""Verification of an image set: besides its files, every value that its manifest claims."""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import verify
from datasets.sample import SCORES
from datasets.shards import INDEX, MANIFEST, read_manifest, read_table
from infra.paths import AnyPath
from pipelines.curate.manifest import FORMAT, IGNORED_FILE, REPEATED, SCORES_FILE, counted


def problems(folder: AnyPath) -> Iterator[str]:
    """Yield one sentence for everything that is not as the set's own records say.

    Checked, besides `datasets.verify.problems`: what the manifest counts is what its scores and
    shards add up to; all else that it says is what `scores.parquet` repeats; it says nothing else.
    """
    is_whole = yield from verify.problems(folder)
    manifest = read_manifest(folder) if is_whole else None
    if manifest is not None:
        yield from verify.guarded(SCORES_FILE, _claims(folder, manifest))


def _claims(folder: AnyPath, manifest: Mapping[str, Any]) -> Iterator[str]:
    table = read_table(folder / SCORES_FILE)
    repeated = yield from verify.repeated_claims(table, SCORES_FILE, REPEATED)
    if repeated is None:
        return
    scores = table.replace_schema_metadata(None).cast(SCORES)
    ignored = read_table(folder / IGNORED_FILE)
    expected = {**repeated, **counted(scores, ignored, manifest["shards"])}
    if expected["format"] != FORMAT:
        yield f"{SCORES_FILE}: format {expected['format']}, this version reads {FORMAT}"
    if (names := manifest["files"].keys()) != {INDEX, SCORES_FILE, IGNORED_FILE}:
        tables = f"{INDEX}, {SCORES_FILE} and {IGNORED_FILE}"
        yield f"{MANIFEST}: files are {sorted(names)}, expected {tables}"
    yield from verify.claim_problems(manifest, expected)

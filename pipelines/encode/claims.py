"""What the manifest of a latent set claims, compared with its tables, value by value."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import pyarrow.compute as pc

from datasets.latent_pairs import PAIRS
from datasets.sets import FORMATS
from datasets.shards import INDEX, MANIFEST, read_table
from datasets.verify import claim_problems, repeated_claims
from infra.paths import AnyPath
from pipelines.encode.manifest import REPEATED, joined_statistics, repeated
from pipelines.encode.sums import STATISTICS

TABLES = (INDEX, PAIRS, STATISTICS)


def problems(folder: AnyPath, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for every value of a manifest that its tables contradict.

    Counts and statistics are computed again; the rest is what the metadata of the table of pairs
    repeat. The lengths and hashes of files are `datasets.verify`'s. How many latents were copied
    from another set is not checked: no other file tells.
    """
    table = read_table(folder / PAIRS)
    expected = yield from repeated_claims(table, PAIRS, REPEATED)
    if expected is None:
        return
    if expected["format"] not in (known := FORMATS["latent set"]):
        yield f"{PAIRS}: format {expected['format']}, this version reads {', '.join(known)}"
    yield from _growth(manifest, expected["generations"])
    names = [entry["name"] for entry in manifest["shards"]]
    totals = {
        "samples": pc.count_distinct(table["key"]).as_py(),
        "pairs": table.num_rows,
        "gray": pc.sum(table["gray"]).as_py(),
        "shards": len(names),
        "bytes": sum(entry["bytes"] for entry in manifest["shards"]),
    }
    statistics = joined_statistics(expected["generations"], expected["latent"]["channels"])
    counted = {"totals": totals, "statistics": statistics}
    yield from claim_problems({**manifest, **repeated(manifest)}, expected | counted)
    if not manifest["files"].keys() <= set(TABLES):
        yield f"{MANIFEST}: files are {sorted(manifest['files'])}, expected {', '.join(TABLES)}"


def _growth(manifest: Mapping[str, Any], generations: list[Mapping[str, Any]]) -> Iterator[str]:
    """Check that the generations follow each other and have every shard."""
    grown = [generation["draws"] for generation in generations]
    ends = [0, *(last for _, last in grown)]
    if [first for first, _ in grown] != ends[:-1] or ends[-1] != manifest["draws"]:
        yield f"{MANIFEST}: draws is {manifest['draws']}, the generations have {grown}"
    listed = list(chain.from_iterable(generation["shards"] for generation in generations))
    if sorted(listed) != sorted(entry["name"] for entry in manifest["shards"]):
        yield f"{MANIFEST}: the generations have other shards than the set"

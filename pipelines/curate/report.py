"""The report of a curation: the lines that it ends with, its numbers for MLflow, its page."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.archives.found import IGNORED
from datasets.decoding import Pixels, decode
from datasets.reading.image_set import ImageSet
from datasets.sources import ImageRef, Listing, read
from datasets.unusable import UnusableImage
from infra.config import flat
from infra.errors import UserError
from infra.paths import AnyPath
from pipelines.curate.config import CropRule
from pipelines.curate.crop import Box, cut
from pipelines.jobs import page as report
from pipelines.jobs.stage import StageTime
from pipelines.jobs.times import closing_lines, stage_metrics, time_section

SHOWN = 6  # thumbnails a row


def summary(manifest: dict[str, Any], times: Sequence[StageTime], folder: AnyPath) -> str:
    """Return the lines that a run ends with."""
    totals, given, scorer = manifest["totals"], manifest["input"], manifest["scorer"]
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in manifest["dropped"].items())
    return (
        f"{given['images']:,} images ({given['copies']:,} of them copies of others), "
        f"{totals['candidates']:,} candidates: "
        f"kept {totals['samples']:,}; dropped {dropped or 'none'}\n"
        f"{ignored_line(given['ignored'], given['renamed'])}{_transient_line(given)}"
        f"scorer {scorer['name']}, {_rule(scorer)}\n" + closing_lines(totals, times, folder)
    )


def ignored_line(kinds: Mapping[str, int], renamed: int) -> str:
    """Say what is no image, by kind, and how many names were no keys; no line where nothing is."""
    said = [f"{count:,} {kind}" for kind, count in kinds.items()]
    lines = [f"ignored: {', '.join(said)}\n"] if said else []
    if renamed:
        lines.append(f"{renamed:,} names gave other keys, to be safe: see the column `file`\n")
    return "".join(lines)


def _transient_line(given: Mapping[str, Any]) -> str:
    if not given["transient"]:
        return ""
    return (
        f"{given['transient']:,} images could not be read for a reason that may pass; run the same "
        "command again to try them again\n"
    )


def metrics(manifest: dict[str, Any], times: Sequence[StageTime]) -> dict[str, float]:
    """Return the run's numbers for MLflow."""
    totals = manifest["totals"]
    return {
        "images": manifest["input"]["images"],
        "images/broken": manifest["input"]["broken"],
        "candidates": totals["candidates"],
        "samples": totals["samples"],
        "shards": totals["shards"],
        "bytes": totals["bytes"],
        **{f"dropped/{reason}": count for reason, count in manifest["dropped"].items()},
        **{f"ignored/{kind}": count for kind, count in manifest["input"]["ignored"].items()},
        **stage_metrics(times),
    }


def build(
    manifest: dict[str, Any],
    scores: pa.Table,
    pictures: "Pictures",
    times: Sequence[StageTime],
) -> str:
    """Make the page of a set.

    Args:
        manifest: of the set.
        scores: rows of `SCORES`.
        pictures: reads the thumbnails.
        times: of this run's stages.
    """
    totals, scorer = manifest["totals"], manifest["scorer"]
    sections = [("", report.facts(_headline(manifest)))]
    if scorer["threshold"] is not None:
        sections += _score_sections(scores, scorer, pictures)
    else:
        sections.append(("Some of the samples", pictures.some_kept(scores)))
    sections += [
        ("Dropped, by reason", report.bars(manifest["dropped"])),
        ("Ignored, by kind", _ignored_table(manifest["input"])),
        ("Yield by input", _yield_table(scores)),
        (
            "Shards",
            report.table(["split", "shards", "samples", "MB"], _split_rows(manifest["shards"])),
        ),
        ("Time", time_section(times)),
        (
            "Configuration",
            report.table(["field", "value"], list(flat(manifest["config"]).items())),
        ),
    ]
    lead = f"{totals['candidates']:,} candidates from {manifest['input']['images']:,} images"
    return report.page("Curation report", lead, sections)


def _headline(manifest: dict[str, Any]) -> dict[str, str]:
    totals = manifest["totals"]
    share = totals["samples"] / max(1, totals["candidates"])
    return {
        "kept samples": f"{totals['samples']:,}",
        "of the candidates": f"{share:.1%}",
        "shards": f"{totals['shards']:,}",
        "size": f"{totals['bytes'] / 1e6:,.1f} MB",
        "copies of other images": f"{manifest['input']['copies']:,}",
    }


def _rule(scorer: dict[str, Any]) -> str:
    if scorer["threshold"] is None:
        return "everything kept"
    return f"kept {'≥' if scorer['higher_is_better'] else '≤'} {scorer['threshold']:g}"


def _score_sections(
    scores: pa.Table, scorer: dict[str, Any], pictures: "Pictures"
) -> list[tuple[str, str]]:
    """Show the distribution, and pictures from its ends and from both sides of the threshold."""
    scored = scores.filter(pc.is_valid(scores["quality"]))
    values = scored["quality"].to_numpy()
    threshold, higher = scorer["threshold"], scorer["higher_is_better"]
    name = f"{scorer['name']} ({'higher' if higher else 'lower'} is better, {_rule(scorer)})"
    goodness = values if higher else -values
    order = np.argsort(goodness, kind="stable")
    kept = goodness[order] >= (threshold if higher else -threshold)
    first_kept = int(np.argmax(kept)) if kept.any() else len(order)
    rows = {
        "Just kept": order[first_kept : first_kept + SHOWN],
        "Just dropped": order[max(0, first_kept - SHOWN) : first_kept][::-1],
        "Best": order[::-1][:SHOWN],
        "Worst": order[:SHOWN],
    }
    chart = report.histogram(values, threshold, higher_is_better=higher, axis=name)
    galleries = [
        (title, report.gallery(pictures.thumbnails(scored.take(chosen))))
        for title, chosen in rows.items()
    ]
    return [("Scores", chart), *galleries]


def _ignored_table(given: Mapping[str, Any]) -> str:
    rows = [(kind, count, f"each {IGNORED[kind]}") for kind, count in given["ignored"].items()]
    if not rows:
        return report.note("Everything in the inputs is an image by its name.")
    return report.table(["kind", "number", ""], rows) + report.note("Names: ignored.parquet")


def _yield_table(scores: pa.Table) -> str:
    groups = scores.append_column("kept", pc.is_valid(scores["shard"]).cast(pa.int64()))
    rows = groups.group_by("origin").aggregate(
        [("source", "count_distinct"), ("key", "count"), ("kept", "sum")]
    )
    body = [
        (
            r["origin"],
            r["source_count_distinct"],
            r["key_count"],
            r["kept_sum"],
            100 * r["kept_sum"] / r["key_count"],
        )
        for r in rows.sort_by("origin").to_pylist()
    ]
    return report.table(["input", "images", "candidates", "kept", "% kept"], body)


def _split_rows(entries: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    splits = dict.fromkeys(entry["split"] for entry in entries)
    groups = {split: [e for e in entries if e["split"] == split] for split in splits}
    return [
        (split, len(group), sum(e["samples"] for e in group), sum(e["bytes"] for e in group) / 1e6)
        for split, group in groups.items()
    ]


class Pictures:
    """Reads candidates' pixels for thumbnails: samples from their shards, others from the sources.

    Args:
        folder: of the published set.
        listing: the source images.
        rule: how they are cut.
        max_pixels: the limit of the run.
    """

    def __init__(self, folder: AnyPath, listing: Listing, rule: CropRule, max_pixels: int) -> None:
        self.rule = rule
        self._images = ImageSet(folder)
        refs: dict[str, ImageRef] = {ref.key: ref for ref in listing.images}

        # Neighbours in score are often of one photograph; a few decoded ones are kept at hand.
        @lru_cache(maxsize=4)
        def source(key: str) -> Pixels:
            try:
                return decode(read(refs[key]), max_pixels)
            except UnusableImage as error:
                raise UserError(
                    f"{refs[key].path}: image {key} cannot be read for the report ({error}); the "
                    "set is complete, run the same command again for the report"
                ) from error

        self._source = source

    def some_kept(self, scores: pa.Table) -> str:
        """Show two rows of samples, evenly spaced in the order of the set."""
        kept = scores.filter(pc.is_valid(scores["shard"]))
        count = min(2 * SHOWN, kept.num_rows)
        chosen = np.linspace(0, kept.num_rows - 1, count).astype(int)
        return report.gallery(self.thumbnails(kept.take(chosen)))

    def thumbnails(self, rows: pa.Table) -> list[report.Thumbnail]:
        """Return the rows' patches with their scores."""
        return [
            report.Thumbnail(
                self._patch(row),
                "" if row["quality"] is None else f"{row['quality']:.2f}",
                row["key"],
            )
            for row in rows.to_pylist()
        ]

    def _patch(self, row: dict[str, Any]) -> Pixels:
        if row["shard"] is None:
            box = Box(row["x"], row["y"], row["w"], row["h"])
            return cut(self._source(row["source"]), box, self.rule)
        number: int = pc.index(self._images.rows["key"], row["key"]).as_py()
        return self._images.pixels(number)

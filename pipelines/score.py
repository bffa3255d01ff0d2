"""Images -> scored candidates. The scorer is one small contract; scoring never drops by quality."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.decoding import UndecodableImage, decode
from datasets.sample import CANDIDATE, empty_row
from datasets.shards import fits_ustar, parquet_bytes, read_manifest
from datasets.sources import ImageRef, read
from infra.config import pretty_json
from infra.errors import UsageError
from infra.storage import explained, local_path, write_bytes
from pipelines.crop import CropRule, Pixels, cut_all, patch_key, single_threaded
from pipelines.stage import Stopwatch


class QualityScorer(Protocol):
    """A no-reference quality metric, loaded once per worker.

    Attributes:
        name: the metric's own name, as reports print it.
        scale: typical (lowest, highest) value.
        higher_is_better: direction of the scale.
        default_threshold: what is kept when the user names no threshold; None keeps everything.
        digest: identity of the weights; scores of another digest are never reused.
    """

    name: str
    scale: tuple[float, float]
    higher_is_better: bool
    default_threshold: float | None
    digest: str

    def score(self, images: Sequence[Pixels]) -> list[float]:
        """Score RGB uint8 [H, W, 3] images; NaN where the metric is undefined."""
        ...


class Unscored:
    """Scorer `none`: every decodable candidate is kept, as the paper does with FFHQ."""

    name = "none"
    scale = (0.0, 0.0)
    higher_is_better = True
    default_threshold: float | None = None
    digest = "none"

    def score(self, images: Sequence[Pixels]) -> list[float]:
        """Give every image 0; nothing compares it."""
        return [0.0] * len(images)


class ImportedScores:
    """Scores from the authors' ``<dir>_quality_score.json``: {key of the patch: score}.

    They are taken as Q-Align's (1 to 5, higher is better, 3.5 keeps): that is what the file holds.
    """

    name = "imported"
    scale = (1.0, 5.0)
    higher_is_better = True
    default_threshold: float | None = 3.5

    def __init__(self, path: str) -> None:
        try:
            data = local_path(path).read_bytes()
            scores = json.loads(data)
            self.scores = {str(key): float(value) for key, value in scores.items()}
        except OSError as error:
            raise UsageError(str(explained(error, path))) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"--scorer {path}: not a quality_score.json ({error}); expected one JSON object "
                "{relative path without extension: score}"
            ) from error
        self.digest = hashlib.sha256(data).hexdigest()

    def score(self, images: Sequence[Pixels]) -> list[float]:
        """Refuse: imported scores belong to keys, not to pixels."""
        raise TypeError("imported scores are looked up by key")


def make_scorer(name: str) -> QualityScorer:
    """Build a scorer by name: `brisque`, `none`, or the path of a quality_score.json.

    Raises:
        UsageError: an unknown name, or one that cannot run here. No other scorer takes its place.
    """
    if name == "brisque":
        from models.brisque import Brisque

        return Brisque()
    if name == "none":
        return Unscored()
    if name.endswith(".json"):
        return ImportedScores(name)
    if name == "qalign":
        raise UsageError(
            "--scorer qalign: Q-Align is not part of this version yet; use --scorer brisque (its "
            "own scale), --scorer none, or the authors' scores, --scorer FILE_quality_score.json"
        )
    raise UsageError(f"--scorer {name}: choose brisque, qalign, none or a quality_score.json")


class ScoreImages:
    """The actor: a unit of image references in, one durable table of candidates out.

    A unit is done when its table exists; a repeated unit writes the same bytes under the same name.
    """

    def __init__(self, rule: CropRule, scorer: str, max_pixels: int) -> None:
        single_threaded()
        self.rule = rule
        self.scorer = make_scorer(scorer)
        self.max_pixels = max_pixels
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Score the images of ``unit["refs"]`` into ``unit["path"]``; returns counts and times."""
        rows: list[dict[str, Any]] = []
        for fields in unit["refs"]:
            ref = ImageRef(**fields)
            rows += [{**row, "stamp": ref.stamp} for row in self.candidates(ref)]
        table = pa.Table.from_pylist(rows, schema=CANDIDATE.append(pa.field("stamp", pa.int64())))
        with self.watch("write"):
            write_bytes(Path(unit["path"]), parquet_bytes(table))
        return {"done": len(unit["refs"]), "seconds": self.watch.take()}

    def candidates(self, ref: ImageRef) -> list[dict[str, Any]]:
        """Turn one image into its candidate rows; without a patch it gives one dropped row."""
        base = {"source": ref.key, "origin": ref.origin, "source_bytes": ref.size}
        none = {**base, "key": ref.key, "index": 0}
        if not fits_ustar(ref.key):
            return [empty_row(**none, drop_reason="key_too_long")]
        try:
            with self.watch("read"):
                data = read(ref)
                base["source_sha256"] = none["source_sha256"] = hashlib.sha256(data).hexdigest()
            with self.watch("decode"):
                image = decode(data, self.max_pixels)
        except UndecodableImage as error:
            return [empty_row(**none, drop_reason=error.reason)]
        except OSError:
            return [empty_row(**none, drop_reason="unreadable")]
        height, width = image.shape[:2]
        base |= {"image_width": width, "image_height": height}
        patches = list(cut_all(image, self.rule))
        if not patches:
            return [empty_row(**none | base, drop_reason="too_small")]
        keys = [patch_key(ref.key, index, self.rule) for index, _, _ in patches]
        with self.watch("score"):
            scores = self._scores(keys, [patch for _, _, patch in patches])
        return [
            empty_row(
                **base,
                key=key,
                index=index,
                x=box.x,
                y=box.y,
                w=box.w,
                h=box.h,
                quality=None if math.isnan(score) else score,
            )
            for key, (index, box, _), score in zip(keys, patches, scores, strict=True)
        ]

    def _scores(self, keys: list[str], patches: list[Pixels]) -> list[float]:
        if isinstance(self.scorer, ImportedScores):
            return [self.scorer.scores.get(key, math.nan) for key in keys]
        return self.scorer.score(patches)


def export(folder: Path, target: Path) -> int:
    """Write ``{key: score}`` of every scored candidate of a set, as the authors' datasets read it.

    Returns:
        The number of scores.

    Raises:
        UsageError: no complete set in ``folder``.
    """
    if read_manifest(folder) is None:
        raise UsageError(f"{folder}: no complete set here (no manifest.json); curate it first")
    table = pq.read_table(folder / "scores.parquet", columns=["key", "quality"])
    rows = table.filter(pc.is_valid(table["quality"])).to_pylist()
    scores = {row["key"]: row["quality"] for row in rows}
    write_bytes(target, pretty_json(scores))
    return len(scores)

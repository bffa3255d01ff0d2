"""What was in validation stays out of training: a given list, and a record of what was held out."""

import json
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from infra.config import digest, pretty_json
from infra.errors import UsageError
from infra.paths import AnyPath, path_of, read_if_there, write_bytes
from infra.storage import explained
from pipelines.curate.config import CutRule
from pipelines.curate.selection import uniform_of


def read_val_list(path: str, keys: Collection[str]) -> frozenset[str]:
    """Read the keys of the images of `val`.

    Args:
        path: a text file, one key a line; empty lines do not count. "" is no file.
        keys: of all images of the input.

    Raises:
        UsageError: it cannot be read, is empty, or names an image that is not there.
    """
    if not path:
        return frozenset()
    try:
        lines = path_of(path).read_text().splitlines()
    except OSError as error:
        raise UsageError(f"--val-list: {explained(error, path)}") from error
    listed = [line.strip() for line in lines if line.strip()]
    unknown = sorted(set(listed) - set(keys))
    if unknown or not listed:
        named = f"the first is {unknown[0]!r}" if unknown else "it is empty"
        raise UsageError(
            f"--val-list {path}: {len(unknown)} of {len(listed)} lines are no key of an image "
            f"({named}); a key is the path inside the input without its extension, as in the "
            "column source of scores.parquet"
        )
    return frozenset(listed)


def list_digest(listed: Collection[str]) -> str | None:
    """Identify a list whatever its order, for the manifest; None for no list."""
    return digest(sorted(listed)) if listed else None


class HeldOut:
    """The images that were ever held out of training in an output folder.

    What was trained with any set of the folder may be judged by them, so a later cut that would
    train on one of them is refused. The record decides nothing else: what a set holds depends on
    its input and its configuration alone.

    Args:
        path: the record, a JSON file.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        content = read_if_there(path)
        record = json.loads(content) if content else {"images": {}, "fractions": {}}
        self.images: dict[str, str] = record["images"]
        self.fractions: dict[str, float] = record["fractions"]

    def add(self, scores: pa.Table, rule: CutRule) -> None:
        """Record what a cut holds out, before it is published.

        Args:
            scores: rows of `SCORES`.
            rule: by which they were cut.
        """
        held = (pc.field("split") == "val") | (pc.field("drop_reason") == "held_out")
        self.images |= dict(_images(scores.filter(held)))
        seed, fraction = str(rule.seed), rule.hold_out or rule.val_fraction
        self.fractions[seed] = max(self.fractions.get(seed, 0.0), fraction)
        write_bytes(self.path, pretty_json({"images": self.images, "fractions": self.fractions}))

    def check(self, scores: pa.Table, rule: CutRule, output: AnyPath) -> None:
        """Refuse a cut that puts images into training which were held out of it.

        Args:
            scores: rows of `SCORES`.
            rule: by which they were cut.
            output: the folder of the set, for the message.

        Raises:
            UsageError: names the number of images, the first of them, and the ways out.
        """
        files = set(self.images.values())
        train = _images(scores.filter(pc.field("split") == "train"))
        moved = sorted({key for key, sha in train if key in self.images or sha in files})
        if moved:
            raise UsageError(
                f"--output {output}: {len(moved)} images that a set there held out for validation "
                f"would become training images, the first is {moved[0]!r}; "
                f"{self._ways_out(moved, rule)}"
            )

    def _ways_out(self, moved: list[str], rule: CutRule) -> str:
        """Say what keeps these images out of training, and where they may enter it."""
        fraction = self.fractions.get(str(rule.seed), 0.0)
        enough = all(uniform_of(key, rule.seed) < fraction for key in moved) and not rule.val_list
        hold = f"give --hold-out {fraction:g} to leave them out of both splits, or " * enough
        return f"{hold}keep the seed and the fraction or list of that set, or give another --output"


def _images(scores: pa.Table) -> set[tuple[str, str]]:
    """Return the key and the SHA-256 of the images of some candidates."""
    return set(zip(scores["source"].to_pylist(), scores["source_sha256"].to_pylist(), strict=True))

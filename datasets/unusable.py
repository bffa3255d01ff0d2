"""Why an image cannot be used: every reason, in one word, and whose fault it is.

A reason is of one of three kinds. The *file's* own reason stays until the file changes: it is
stored, and counts as broken. A *transient* reason lies in the machine, not in the file (permission,
a network disk, memory): the image counts as broken in this run, and the next run tries it again.
A *content* reason is no fault: the image or the patch is sound, and is not what the set is made of.
"""

from enum import StrEnum


class Kind(StrEnum):
    """Whose fault a reason is."""

    FILE = "file"
    TRANSIENT = "transient"
    CONTENT = "content"


REASONS = {
    "empty_file": Kind.FILE,
    "not_an_image": Kind.FILE,
    "truncated": Kind.FILE,
    "undecodable": Kind.FILE,
    "oversized_metadata": Kind.FILE,
    "too_many_pixels": Kind.FILE,
    "key_too_long": Kind.FILE,
    "crashed": Kind.FILE,
    "damaged_member": Kind.FILE,
    "encrypted": Kind.FILE,
    "unsupported_compression": Kind.FILE,
    "unreadable": Kind.TRANSIENT,
    "vanished": Kind.TRANSIENT,
    "changed": Kind.TRANSIENT,
    "out_of_memory": Kind.TRANSIENT,
    "scorer_failed": Kind.TRANSIENT,
    "unsupported_mode": Kind.CONTENT,
    "transparent": Kind.CONTENT,
    "too_small": Kind.CONTENT,
    "unscorable": Kind.CONTENT,
    "low_quality": Kind.CONTENT,
    "not_in_scores": Kind.CONTENT,
    "excluded": Kind.CONTENT,
    "duplicate": Kind.CONTENT,
    "held_out": Kind.CONTENT,
}
"""Every reason and its kind; pipelines/README.md explains them, and a test compares the two."""

TRANSIENT = frozenset(reason for reason, kind in REASONS.items() if kind is Kind.TRANSIENT)
"""Reasons that the next run may not meet again."""
BROKEN = frozenset(reason for reason, kind in REASONS.items() if kind is not Kind.CONTENT)
"""Reasons that count against ``--max-bad``."""


class UnusableImage(ValueError):  # noqa: N818  (an outcome that is counted)
    """An image that cannot be used.

    Attributes:
        reason: one of `REASONS`.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class UnreadableImage(UnusableImage):
    """An image whose bytes cannot be read."""

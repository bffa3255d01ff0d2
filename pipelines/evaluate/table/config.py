"""What `python -m pipelines.evaluate table` is told; light, so that it is checked quickly."""

from typing import Annotated, Literal

from pydantic.dataclasses import dataclass
from tyro.conf import arg

from infra.cli import choices
from infra.config import STRICT
from models.metrics.catalog import METRICS

Format = Literal["markdown", "latex", "csv"]
SUFFIXES: dict[str, Format] = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
ACCEPTABLE = ("device", "dtype")
"""Parts of a fingerprint that a user may let differ: all others are another measurement."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class TableConfig:
    """Which numbers of the evaluations to lay side by side, and how."""

    output: Annotated[str, arg(aliases=["-o"])] = ""
    """File of the table; by default it is printed."""
    format: Format | None = None
    """By default that of the output's name, .md, .tex or .csv; without an output, markdown."""
    metrics: Annotated[tuple[str, ...], choices(*METRICS)] = ()
    """By default all that any of the evaluations has."""
    methods: tuple[str, ...] = ()
    """Rows in this order; by default all methods, in the order of the evaluations."""
    accept: Annotated[tuple[str, ...], choices(*ACCEPTABLE)] = ()
    """What may differ between evaluations, which the table then says below."""

    def __post_init__(self) -> None:
        for option, given, known in (
            ("metrics", self.metrics, tuple(METRICS)),
            ("accept", self.accept, ACCEPTABLE),
        ):
            if unknown := [name for name in given if name not in known]:
                raise ValueError(f"{option} {unknown[0]!r}: unknown; choose of {', '.join(known)}")

"""What `python -m pipelines.demo` is told."""

from dataclasses import field
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from infra.config import STRICT
from pipelines.restore.config import RestoreRule


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class DemoConfig:
    """Which model the page restores with, who reaches it, and how much it takes."""

    rule: RestoreRule = field(default_factory=lambda: RestoreRule(model="portraits128"))
    """The model, and how it restores; what the page has a control for begins with these values."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, and the page asks for no password."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 7860
    """Port to listen on; 0 takes a free one."""
    names: tuple[str, ...] = ()
    """Names by which browsers reach this machine, besides localhost and its addresses."""
    max_mb: PositiveFloat = 32.0
    """Largest photograph, in megabytes."""
    max_megapixels: PositiveFloat = 50.0
    """Largest photograph, in millions of pixels."""
    min_face: PositiveInt | None = None
    """Side in pixels of the smallest face that is restored; None: as `pipelines.restore` has it."""
    places: PositiveInt = 8
    """Photographs that may wait; a further one is refused for the time being."""
    keep_minutes: PositiveFloat = 30.0
    """Minutes after which a result is forgotten."""
    keep_mb: PositiveFloat = 1024.0
    """Megabytes of results in memory, beyond which the oldest are forgotten earlier."""


PRESETS = {"local": DemoConfig()}

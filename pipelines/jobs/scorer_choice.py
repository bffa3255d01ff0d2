"""Which quality scorer a command asks for; light, so that a command line is checked quickly."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerChoice:
    """Which scorer, and what a learned one needs."""

    name: str
    """brisque, qalign, none, or the path of a quality_score.json."""
    weights: str = "q-future/one-align"
    """Q-Align: a folder with the published files, or a hub id."""
    prompt: str = "quality"
    """Q-Align: name of the question asked."""
    dtype: str | None = None
    """Q-Align: float16 (default on CUDA), bfloat16 or float32 (default on CPU)."""
    batch: int = 8
    """Q-Align: patches per forward pass."""
    gpus: int | None = None
    """Q-Align: GPUs to use, one worker each; None takes all there are; 0 scores on CPUs."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"scorer_batch {self.batch}: at least 1")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"scorer_gpus {self.gpus}: at least 0 (0 scores on CPUs)")

    @property
    def device(self) -> str:
        """Return the device that this choice computes on; only Q-Align knows GPUs."""
        return "cuda" if self.name == "qalign" and self.gpus != 0 else "cpu"

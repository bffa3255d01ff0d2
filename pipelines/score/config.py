"""What `python -m pipelines.score` is told."""

from dataclasses import dataclass

from pipelines.jobs.scorer_choice import ScorerChoice


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """What to score and with what."""

    images: tuple[str, ...] = ()
    """Folders, images, .tar, .tar.gz or .zip; NAME=PATH prefixes that input's keys."""
    output: str = ""
    """File for the scores: .json ({key: score}) or .csv; by default only the terminal."""
    scorer: str = "qalign"
    """qalign or brisque."""
    scorer_weights: str = "q-future/one-align"
    """Q-Align: a folder with the published files, or a hub id."""
    scorer_prompt: str = "quality"
    """Q-Align: name of the question asked, such as quality or aesthetics."""
    scorer_dtype: str | None = None
    """Q-Align: float16 (default on CUDA), bfloat16 or float32 (default on CPU)."""
    scorer_batch: int = 8
    """Q-Align: images per forward pass."""
    device: str = "cuda"
    """Q-Align: cuda or cpu; the other never takes its place."""
    max_bad: float = 1.0
    """Share of broken images above which the exit code is 3."""

    def __post_init__(self) -> None:
        if self.device not in ("cuda", "cpu"):
            raise ValueError(f"device {self.device!r}: choose cuda or cpu")
        if self.scorer not in ("qalign", "brisque"):
            raise ValueError(f"scorer {self.scorer!r}: choose qalign or brisque")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad {self.max_bad}: a fraction between 0 and 1")
        if self.output and not self.output.endswith((".json", ".csv")):
            raise ValueError(f"output {self.output!r}: a name that ends in .json or .csv")

    def choice(self) -> ScorerChoice:
        """Return the scorer that this asks for."""
        return ScorerChoice(
            name=self.scorer,
            weights=self.scorer_weights,
            prompt=self.scorer_prompt,
            dtype=self.scorer_dtype,
            batch=self.scorer_batch,
            gpus=0 if self.device == "cpu" else None,
        )


PRESETS = {"qalign": ScoreConfig(), "brisque": ScoreConfig(scorer="brisque")}

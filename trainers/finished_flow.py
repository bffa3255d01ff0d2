"""What is registered of a finished flow or regressor: names, shapes, and what it belongs to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.registry import FinishedModel
from trainers.flow import FlowConfig

NETWORKS = ("vae", "predictor", "regressor")  # of an identity, their weights' digests


def finished_flow(
    config: FlowConfig,
    shape: tuple[int, ...],
    folder: Path,
    digest: str,
    identity: Mapping[str, Any],
) -> FinishedModel:
    """Describe a network in ``folder``.

    Args:
        config: of its training.
        shape: of a point of the flow, [C, H, W].
        folder: as `models.checkpoint.save_checkpoint` wrote it.
        digest: of its weights.
        identity: of the frozen networks that its pairs came from, and more, as a latent set has it.
    """
    x, is_flow = (-1, *shape), config.stage == "flow"
    condition = {"condition": x} if config.conditional else {}
    belongs_to = {name: identity[name] for name in NETWORKS if identity.get(name)}
    reads = "" if is_flow else ", or `trainers.flow --source regressed --regressor FOLDER`"
    return FinishedModel(
        name=f"latent-pmrf-{config.stage}" if config.space == "latent" else "pmrf-flow",
        folder=folder,
        digest=digest,
        facts={"belongs_to": belongs_to},
        inputs={"x_t": x, "t": (-1,), **condition},
        outputs={"velocity" if is_flow else "residual": x},
        use=f"{config.model}: `models.checkpoint.load_checkpoint(FOLDER)`{reads}.",
    )

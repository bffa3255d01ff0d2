"""What each trainer trains, tiny, on a CPU, in the test's own process."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.support.training_sets import write_image_set, write_latent_set
from trainers.loop.config import EngineConfig, LoopConfig, Precision
from trainers.loop.task import Task
from trainers.recipes import predictor_config, vae_config
from trainers.recipes.flow import FlowTask
from trainers.recipes.flow_config import PRESETS
from trainers.recipes.predictor import PredictorTask
from trainers.recipes.vae import VAETask

CPU = torch.device("cpu")


def tiny_task(
    program: str, folder: Path, *, is_recomputed: bool = False, precision: Precision = "fp32"
) -> Task:
    """Build a task on small data, which is written to the folder if it is not there."""
    images = folder / "images"
    if not images.exists():
        write_image_set(images, size=32)
        write_latent_set(folder / "latents")
    engine = EngineConfig(
        global_batch_size=8, activation_checkpointing=is_recomputed, precision=precision
    )
    shared = {"model": "tiny", "engine": engine, "loop": LoopConfig(workers=0)}
    match program:
        case "flow":
            latents = str(folder / "latents")
            return FlowTask(replace(PRESETS["tiny"], latents=latents, **shared), CPU)
        case "vae":
            vae = replace(vae_config.PRESETS["tiny"], crop=16, data=(str(images),), **shared)
            return VAETask(vae, CPU)
    tiny = predictor_config.PRESETS["tiny"]
    return PredictorTask(replace(tiny, images=(str(images),), **shared), CPU)

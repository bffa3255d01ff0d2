"""Restorers of others, to compare with: any model of one picture that spandrel recognises.

GFPGAN and RestoreFormer are in spandrel itself, CodeFormer in spandrel-extra-arches, which is used
where it is installed. Such a model is a function f from LQ to a face. As a flow in pixels, with LQ
as its source and the velocity f(x) - x, one step of Euler's method ends at f(LQ): so that jobs and
the page handle it as any bundle.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infra.copies import at_hand
from infra.errors import UsageError
from models.bundle import Bundle
from models.bundle_facts import BundleConfig, TrainingFacts
from models.restorer import RestorationRule, Restorer

SIZE = 512  # pixels of a side that GFPGAN, RestoreFormer and CodeFormer were trained on
INSTALL = "pip install -e '.[comparators]'"
SEED = 0  # of the numbers that a model draws for itself, as GFPGAN does: the same for every face


class Comparator(nn.Module):
    """A model of spandrel as a velocity whose single step of Euler's method is the model.

    Args:
        described: spandrel's `ImageModelDescriptor`.
    """

    def __init__(self, described: Any) -> None:
        super().__init__()
        self.network: nn.Module = described.model
        self._restored = described

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return f(x_t) - x_t, of images [B, 3, H, W] in [0, 1], one by one."""
        del t, condition
        devices = [x_t.device] if x_t.device.type == "cuda" else []
        restored = []
        for image in x_t:
            with torch.random.fork_rng(devices):
                torch.manual_seed(SEED)
                restored.append(self._restored(image[None].contiguous()))
        return torch.cat(restored) - x_t


def load_comparator(where: str) -> Bundle:
    """Load a model's file as a bundle of one step, in float32 on the CPU.

    Raises:
        UsageError: spandrel cannot be imported, or the file is no model of one RGB picture that
            keeps its size.
    """
    spandrel = import_spandrel()
    file = Path(at_hand(where))
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        described = spandrel.ModelLoader().load_from_file(file)
    except spandrel.UnsupportedModelError as error:
        raise UsageError(
            f"--model {where}: spandrel {spandrel.__version__} recognises no model in it; for "
            "CodeFormer run pip install spandrel-extra-arches, whose models are not for commerce"
        ) from error
    except Exception as error:  # of the system, of torch.load, of a pickle: whatever the file is
        raise UsageError(
            f"--model {where}: not a file of a model ({type(error).__name__}: {error}); give a "
            ".pth, .pt, .ckpt or .safetensors file of GFPGAN, RestoreFormer, ..."
        ) from error
    check(where, described, spandrel)
    name = f"{described.architecture.name}, {file.name}"
    config = BundleConfig(
        rule=RestorationRule(space="pixel", source="lq", sigma_s=0.0),
        size=SIZE,
        steps=1,
        parts={"velocity": digest},
        training=TrainingFacts(networks={"velocity": name}),
    )
    network = Comparator(described).eval().requires_grad_(False)
    return Bundle(config, network, Restorer(config.rule))


def check(where: str, described: Any, spandrel: Any) -> None:
    """Refuse a model that does not make a face of a face.

    Raises:
        UsageError: it wants a mask, is not for RGB, or changes the size.
    """
    if not isinstance(described, spandrel.ImageModelDescriptor):
        raise UsageError(f"--model {where}: a model for {described.purpose}, which needs a mask")
    channels = (described.input_channels, described.output_channels)
    if channels != (3, 3) or described.scale != 1:
        raise UsageError(
            f"--model {where}: {described.architecture.name} with {channels[0]} channels in and "
            f"{channels[1]} out, enlarging {described.scale} times; a restorer of faces has 3 and "
            "3, and keeps the size"
        )


def import_spandrel() -> Any:
    """Import spandrel, with the further architectures where they are installed.

    Raises:
        UsageError: it is not installed, or what it needs does not load here.
    """
    try:
        import spandrel
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--method spandrel needs the package {error.name}, which is not installed: {INSTALL}"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"--method spandrel: spandrel does not load ({type(error).__name__}: {said}). It needs "
            "torchvision, and PyPI's torchvision fits a CUDA build of PyTorch only; here PyTorch "
            f"is {torch.__version__}. Install both from one place, in an environment of their own "
            "if this one is to stay"
        ) from error
    try:
        import spandrel_extra_arches
    except ModuleNotFoundError:
        return spandrel
    spandrel_extra_arches.install(ignore_duplicates=True)
    return spandrel

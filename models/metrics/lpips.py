"""LPIPS v0.1, the perceptual distance (Zhang et al. 2018): 0 for equal images, lower is better.

The features of five stages of a classifier are scaled to unit length at each place; the squared
differences are weighed by channel, averaged over places and added up. The weights were fitted to
people's judgements. The paper's tables have ``alex``, as pyiqa does by default; PMRF's evaluation
has ``vgg``, whose numbers are others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.checkpoint import load_strict, read_state_dict, weights_digest
from models.metrics.backbones import VGG16, ImageNetFeatures, load_features
from models.metrics.catalog import Judge
from models.metrics.fidelity import check_pair
from models.metrics.published import IQA, PublishedFile
from models.ranges import model_to_unit, uint8_to_model

Net = Literal["alex", "vgg"]
EPS = 1e-10  # added to a length before it divides


class AlexNet(ImageNetFeatures):
    """AlexNet up to conv5, its last convolution."""

    CHECKPOINT, SIZE = "alexnet-owt-7be5be79.pth", "244 MB"

    def __init__(self) -> None:
        features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            nn.Conv2d(256, 256, 3, padding=1),
        )
        super().__init__(features, {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10})


class Variant(NamedTuple):
    """What a choice of the classifier means."""

    trunk: type[AlexNet] | type[VGG16]
    layers: tuple[str, ...]
    """Convolutions that end the stages."""
    widths: tuple[int, ...]
    """Their channels."""
    file: str
    """pyiqa's name of the fitted weights; the package lpips has the same bytes."""
    min_side: int
    """Pixels below which the last stage has none."""


VARIANTS: dict[Net, Variant] = {
    "alex": Variant(
        trunk=AlexNet,
        layers=("conv1", "conv2", "conv3", "conv4", "conv5"),
        widths=(64, 192, 384, 256, 256),
        file="LPIPS_v0.1_alex-df73285e.pth",
        min_side=31,
    ),
    "vgg": Variant(
        trunk=VGG16,
        layers=("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"),
        widths=(64, 128, 256, 512, 512),
        file="LPIPS_v0.1_vgg-a78928a0.pth",
        min_side=16,
    ),
}


class LPIPS(nn.Module):
    """The distance of image pairs.

    Args:
        net: the classifier whose features are compared.

    Attributes:
        min_side: pixels that an image must have on each side.
    """

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        variant = VARIANTS[net]
        self.layers, self.min_side = variant.layers, variant.min_side
        self.trunk = variant.trunk()
        self.weights = ChannelWeights(variant.widths)

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """Compare images [B, 3, H, W] in [-1, 1] one by one; returns float32 [B].

        Raises:
            ValueError: different shapes, or a side below ``min_side``.
        """
        if images.shape != reference.shape or min(images.shape[2:]) < self.min_side:
            raise ValueError(
                f"images {list(images.shape)} and reference {list(reference.shape)}: expected one "
                f"shape [B, 3, H, W] with sides of at least {self.min_side}"
            )
        mine, theirs = self._features(images), self._features(reference)
        differences = [(x - y).square() for x, y in zip(mine, theirs, strict=True)]
        distance: Tensor = self.weights(differences)
        return distance

    def _features(self, images: Tensor) -> list[Tensor]:
        """Compute the stages' features after their ReLU, of unit length over the channels.

        LPIPS's scaling layer, (x - shift) / scale with a shift of -.030, -.088, -.188 and a scale
        of .458, .448, .450, is ImageNet's normalisation for images in [-1, 1].
        """
        outputs = self.trunk(model_to_unit(images), self.layers)
        stages = (outputs[name].relu() for name in self.layers)
        return [x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPS) for x in stages]


class ChannelWeights(nn.ModuleDict):
    """The fitted weights, with the published keys (`lin0.model.1.weight`).

    Args:
        widths: channels of each stage.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for number, width in enumerate(widths):
            weigh = nn.Conv2d(width, 1, 1, bias=False)
            # What fitted the weights had dropout in front of them.
            self[f"lin{number}"] = nn.ModuleDict({"model": nn.Sequential(nn.Identity(), weigh)})

    def forward(self, differences: Sequence[Tensor]) -> Tensor:
        """Weigh the stages' differences [B, C, h, w], average over places, add up: [B]."""
        terms = [
            lin.get_submodule("model")(difference).mean(dim=(1, 2, 3))
            for lin, difference in zip(self.values(), differences, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)


def load(variant: Net, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load LPIPS for the catalogue; see `load_lpips`. Its digest is of both files' tensors."""
    model = load_lpips(variant, folder)
    digest = weights_digest(model.state_dict())
    model.to(device)

    def compute(images: Tensor, reference: Tensor) -> Tensor:
        check_pair(images, reference, model.min_side, f"{type(model.trunk).__name__}'s stages need")
        distance: Tensor = model(uint8_to_model(images), uint8_to_model(reference))
        return distance

    return Judge(compute, digest)


def load_lpips(net: Net = "alex", folder: str | Path | None = None) -> LPIPS:
    """Load the published weights, frozen, in evaluation mode, float32 on the CPU.

    Two files are needed: torchvision's classifier, and the fitted weights under pyiqa's name or
    that of the package lpips (`alex.pth`, `vgg.pth`).

    Args:
        net: see `LPIPS`.
        folder: where both are, see `PublishedFile.find`.

    Raises:
        CheckpointError: one is missing (and then where to get it), damaged, or of another network.
    """
    model, file = LPIPS(net), VARIANTS[net].file
    load_features(model.trunk, model.trunk.published().find(folder))
    package = f"lpips/weights/v0.1/{net}.pth of the package lpips"
    path = PublishedFile(file, "7 kB", f"{IQA}/{file}", (f"{net}.pth",), package).find(folder)
    load_strict(model.weights, read_state_dict(path), path)
    return model.eval().requires_grad_(False)

"""Features of networks trained on ImageNet: torchvision's weights without torchvision.

VGG19 for the perceptual loss, VGG16 for LPIPS and DISTS; models/metrics/lpips.py has AlexNet. A
convolution of a VGG is named by its place: `conv3_4` is the fourth at the third resolution. What is
returned is its output before the ReLU, as Real-ESRGAN's perceptual loss takes it.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from models.checkpoint import load_strict, read_state_dict
from models.metrics.published import PublishedFile

WIDTHS = (64, 128, 256, 512, 512)  # of the stages; between two of them the resolution halves
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PREFIX = "features."
WHERE = "https://download.pytorch.org/models"


class ImageNetFeatures(nn.Module):
    """The convolutional part of a classifier, with torchvision's keys (`features.N.weight`).

    Args:
        features: torchvision's layers up to the last convolution; no ReLU works in place, because
            its input is what we return.
        places: the index in ``features`` of each convolution, by name, in their order.
    """

    CHECKPOINT: ClassVar[str]
    """torchvision's file name."""
    SIZE: ClassVar[str]
    """Of that file, which holds the classifier too."""
    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Sequential, places: Mapping[str, int]) -> None:
        super().__init__()
        self.features, self.places = features, places
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def published(cls) -> PublishedFile:
        """Return torchvision's file."""
        return PublishedFile(cls.CHECKPOINT, cls.SIZE, f"{WHERE}/{cls.CHECKPOINT}")

    def forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Compute the outputs of the convolutions ``layers``, and nothing behind the last of them.

        Args:
            images: [B, 3, H, W] in [0, 1].
            layers: names such as "conv3_4".

        Raises:
            ValueError: an unknown layer, with the known ones, or images without three channels.
        """
        unknown = [name for name in layers if name not in self.places]
        if unknown or not layers:
            raise ValueError(f"layers={layers}: give some of {', '.join(self.places)}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {list(images.shape)}; expected [B, 3, H, W]")
        wanted = {self.places[name]: name for name in layers}
        outputs = {}
        x = (images - self.mean) / self.std
        for place, layer in enumerate(islice(self.features, max(wanted) + 1)):
            x = layer(x)
            if place in wanted:
                outputs[wanted[place]] = x
        return outputs


class VGG16(ImageNetFeatures):
    """VGG16 up to conv5_3, its last convolution."""

    CHECKPOINT, SIZE = "vgg16-397923af.pth", "553 MB"

    def __init__(self) -> None:
        super().__init__(*_vgg((2, 2, 3, 3, 3)))


class VGG19(ImageNetFeatures):
    """VGG19 up to conv5_4, its last convolution."""

    CHECKPOINT, SIZE = "vgg19-dcbb9e9d.pth", "575 MB"

    def __init__(self) -> None:
        super().__init__(*_vgg((2, 2, 4, 4, 4)))


def _vgg(counts: Sequence[int]) -> tuple[nn.Sequential, dict[str, int]]:
    """Build the layers of a VGG of so many convolutions a stage, and name their places."""
    features, places, channels = nn.Sequential(), dict[str, int](), 3
    for stage, (width, count) in enumerate(zip(WIDTHS, counts, strict=True), start=1):
        for number in range(1, count + 1):
            places[f"conv{stage}_{number}"] = len(features)
            features.append(nn.Conv2d(channels, width, 3, padding=1))
            features.append(nn.ReLU())
            channels = width
        features.append(nn.MaxPool2d(2))
    del features[-2:]  # behind the last convolution
    return features, places


Features = TypeVar("Features", bound=ImageNetFeatures)


def load_features(model: Features, path: str | Path | None = None) -> Features:
    """Load torchvision's weights into ``model``; frozen, in evaluation mode.

    Args:
        model: the network, of random weights.
        path: the file; by default torchvision's in the caches, see `PublishedFile.find`.

    Raises:
        CheckpointError: missing (and then where to get it), damaged, or of another network.
    """
    file = model.published()
    if path is None:
        path = file.find(None)
    elif not Path(path).exists():
        raise file.missing(path)
    weights = read_state_dict(path).items()
    features = {name: value for name, value in weights if name.startswith(PREFIX)}
    load_strict(model, features, path)  # without the classifier
    return model.eval().requires_grad_(False)


def load_vgg19(path: str | Path | None = None) -> VGG19:
    """Load VGG19, float32 on the CPU; see `load_features`."""
    return load_features(VGG19(), path)

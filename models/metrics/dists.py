"""DISTS, the distance of structure and texture (Ding et al. 2020): 0 for equal images.

The features of five stages of VGG16, and the image itself as a sixth, are compared channel by
channel: their means (texture) as SSIM compares luminance, their variances and covariance over all
places (structure) as it compares contrast. Weights fitted to people's judgements add the channels
up. VGG16's max pooling is replaced by the root of blurred squares, which does not alias.

Images keep their size, as in the paper's tables; the script of DISTS's authors reduces the shorter
side to 256 pixels before, which gives other numbers.
"""

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load_strict, read_state_dict, weights_digest
from models.metrics.backbones import VGG16, load_features
from models.metrics.catalog import Judge
from models.metrics.fidelity import check_pair
from models.metrics.published import IQA, PublishedFile
from models.ranges import uint8_to_unit

FILE = "DISTS_weights-f5e65c96.pth"
"""pyiqa's name of the fitted weights."""
PACKAGE_FILE = "weights.pt"
"""The same weights in the package dists-pytorch."""
FITTED = PublishedFile(
    FILE,
    "12 kB",
    f"{IQA}/{FILE}",
    (PACKAGE_FILE,),
    f"DISTS_pytorch/{PACKAGE_FILE} of the package dists-pytorch",
)
LAYERS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")  # they end VGG16's stages
WIDTHS = (3, 64, 128, 256, 512, 512)  # channels of the image and of the stages
C1, C2 = 1e-6, 1e-6


class L2Pooling(nn.Module):
    """Halve the resolution: the root of the squares, blurred by a Hanning window of 3 x 3."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("window", torch.outer(window, window)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] => [B, C, ceil(h / 2), ceil(w / 2)]; zeros lie beyond the border."""
        channels = x.shape[1]
        kernel = self.window.expand(channels, -1, -1, -1)
        squares = F.conv2d(x.square(), kernel, stride=2, padding=1, groups=channels)
        return (squares + 1e-12).sqrt()


class DISTS(nn.Module):
    """The distance of image pairs.

    Attributes:
        trunk: VGG16 with `L2Pooling`, of torchvision's keys.
        weights: alpha of the textures and beta of the structures, [1, 1475, 1, 1] each.
    """

    NAMES: ClassVar[tuple[str, str]] = ("alpha", "beta")

    def __init__(self) -> None:
        super().__init__()
        self.trunk = VGG16()
        for place, layer in enumerate(self.trunk.features):
            if isinstance(layer, nn.MaxPool2d):
                self.trunk.features[place] = L2Pooling()
        shape = (1, sum(WIDTHS), 1, 1)
        self.weights = nn.ParameterDict({name: torch.ones(shape) for name in self.NAMES})

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """Compare images [B, 3, H, W] in [0, 1] one by one; returns float64 [B].

        D = 1 - sum(alpha texture + beta structure) / sum(alpha + beta), over all channels.
        """
        pairs = zip(self._features(images), self._features(reference), strict=True)
        similarities = [_compare(x, y) for x, y in pairs]
        texture, structure = (torch.cat(some, dim=1) for some in zip(*similarities, strict=True))
        alpha, beta = (self.weights[name].double().flatten() for name in self.NAMES)
        similarity: Tensor = (texture @ alpha + structure @ beta) / (alpha + beta).sum()
        return 1 - similarity

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the images themselves, and the stages' features after their ReLU."""
        outputs = self.trunk(images, LAYERS)
        return [images, *(outputs[name].relu() for name in LAYERS)]


def _compare(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Compare features [B, C, h, w] by their moments over places: texture, structure, [B, C] each.

    The sums are in float64, so that a variance of almost zero is not the rounding of its parts.
    """
    mean_x, mean_y = (z.mean(dim=(2, 3), keepdim=True, dtype=torch.float64) for z in (x, y))
    x, y = x - mean_x.to(x.dtype), y - mean_y.to(y.dtype)

    def moment(product: Tensor) -> Tensor:
        return product.mean(dim=(2, 3), dtype=torch.float64)

    mean_x, mean_y = mean_x[..., 0, 0], mean_y[..., 0, 0]
    texture = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    structure = (2 * moment(x * y) + C2) / (moment(x * x) + moment(y * y) + C2)
    return texture, structure


def load(variant: str, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load DISTS for the catalogue; see `load_dists`. Its digest is of both files' tensors."""
    model = load_dists(folder)
    digest = weights_digest(model.state_dict())
    model.to(device)

    def compute(images: Tensor, reference: Tensor) -> Tensor:
        check_pair(images, reference)
        distance: Tensor = model(uint8_to_unit(images), uint8_to_unit(reference))
        return distance

    return Judge(compute, digest)


def load_dists(folder: str | Path | None = None) -> DISTS:
    """Load the published weights, frozen, in evaluation mode, float32 on the CPU.

    Two files are needed: torchvision's VGG16, and the fitted weights under pyiqa's name or that of
    the package dists-pytorch.

    Args:
        folder: where both are, see `PublishedFile.find`.

    Raises:
        CheckpointError: one is missing (and then where to get it), damaged, or of another network.
    """
    model = DISTS()
    load_features(model.trunk, model.trunk.published().find(folder))
    path = FITTED.find(folder)
    load_strict(model.weights, read_state_dict(path), path)
    return model.eval().requires_grad_(False)

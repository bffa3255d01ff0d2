"""Deg, the angle between two faces' features in degrees: 0 for one picture, lower is better.

The features are those of a ResNet-18 trained with ArcFace's loss on grey faces of 128 x 128 pixels
(ronghuaiyang's arcface-pytorch), and the angle is arccos(<x, y> / |x| |y|). The whole picture of a
face that is aligned as FFHQ's are goes in, without ArcFace's own crop. There are two variants,
whose values must never be compared: on one pair of pictures they differ by factors.

``authors``, the Latent-PMRF paper's Table 4: grey in [0, 1] as it is, resized by PyTorch's bicubic
without antialiasing; every pair counts. The network was trained on [-1, 1], so it is misled.

``vqfr``, of VQFR, PMRF and the papers between: grey as OpenCV reads it from a PNG file, resized by
its bilinear without antialiasing, in [-1, 1]; pairs that are less than 1 degree apart do not count,
because they are taken for copies.

An arccos in float32 cannot tell cosines above 1 - 6e-8 from 1, which are angles up to 0.02 degrees,
and for a picture and itself it gives NaN where rounding makes the cosine larger than 1. Here the
angle of the unit vectors u and v is 2 atan2(|u - v|, |u + v|) in float64, which is 0 for a picture
and itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.metrics.catalog import Judge, to_pixels
from models.metrics.fidelity import check_pair
from models.metrics.published import PublishedFile, load_published, published_digest
from models.ranges import uint8_to_model, uint8_to_unit

Variant = Literal["authors", "vqfr"]
FILE = PublishedFile(
    "resnet18_110.pth",
    "103 MB",
    "VQFR's folder https://drive.google.com/drive/folders/1k3RCSliF6PsujCMIdCD1hNM63EozlDIZ",
)
SIDE = 128  # of what the network sees, in pixels
WIDTHS = (64, 128, 256, 512)  # of the four stages
LUMA = (0.2989, 0.5870, 0.1140)  # the authors' grey
PNG_LUMA = (9797, 19234, 3737)  # libpng's, in 2^15ths: it cuts off what lies behind the point
COPY = 1.0  # degrees, below which VQFR's script takes two faces for one picture


class FaceResNet(nn.Module):
    """ResNet-18 with a batch norm in front of each block, with the published keys."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU()
        self.maxpool = nn.MaxPool2d(2)
        before = (WIDTHS[0], *WIDTHS)
        for number, width in enumerate(WIDTHS, start=1):
            first = Block(before[number - 1], width, stride=1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(first, Block(width, width, stride=1)))
        self.bn4 = nn.BatchNorm2d(WIDTHS[-1])
        self.fc5 = nn.Linear(WIDTHS[-1] * (SIDE // 16) ** 2, WIDTHS[-1])
        self.bn5 = nn.BatchNorm1d(WIDTHS[-1])

    def forward(self, grey: Tensor) -> Tensor:
        """Describe grey faces [B, 1, 128, 128] by features [B, 512] of any length."""
        x = self.maxpool(self.prelu(self.bn1(self.conv1(grey))))
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        features: Tensor = self.bn5(self.fc5(self.bn4(x).flatten(1)))
        return features


class Block(nn.Module):
    """Two convolutions beside a shortcut; the second takes the stride.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: 2 halves the sides.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.prelu = nn.PReLU()  # one slope, which serves twice
        self.conv2 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if inputs != outputs:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        branch = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        y: Tensor = self.prelu(self.bn2(self.conv2(branch)) + self.downsample(x))
        return y


def prepare_authors(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] => grey [B, 1, 128, 128] in about [0, 1]; bicubic can overshoot."""
    luma = torch.tensor(LUMA, device=images.device).view(3, 1, 1)
    grey = (uint8_to_unit(images) * luma).sum(dim=1, keepdim=True)
    return F.interpolate(grey, (SIDE, SIDE), mode="bicubic", align_corners=False)


def prepare_vqfr(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] => grey [B, 1, 128, 128] in [-1, 1]; resized on the CPU."""
    small = [
        cv2.resize(_png_grey(pixels), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        for pixels in to_pixels(images)
    ]
    return uint8_to_model(torch.from_numpy(np.stack(small))[:, None].to(images.device))


def _png_grey(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """RGB [H, W, 3] => grey [H, W], as cv2.imread gives it of a PNG file when asked for grey.

    It is libpng that makes it; cv2.cvtColor rounds, and is half a level brighter in the mean.
    """
    summed = pixels.astype(np.int32) @ np.array(PNG_LUMA, np.int32)
    return (summed >> 15).astype(np.uint8)


PREPARE: dict[Variant, Callable[[Tensor], Tensor]] = {
    "authors": prepare_authors,
    "vqfr": prepare_vqfr,
}


def angles(features: Tensor, reference: Tensor) -> Tensor:
    """Return the angles between features [B, D] in degrees, float64 [B], from 0 to 180."""
    u, v = (F.normalize(some.double(), dim=1) for some in (features, reference))
    apart, together = (torch.linalg.vector_norm(some, dim=1) for some in (u - v, u + v))
    return torch.rad2deg(2 * torch.atan2(apart, together))


def load(variant: Variant, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load Deg for the catalogue; its values are angles in degrees, float64.

    Args:
        variant: see above; of ``vqfr``, an angle below 1 degree is NaN, so that no mean has it.
        folder: where `resnet18_110.pth` is, see `PublishedFile.find`.
        device: where to compute.

    Raises:
        CheckpointError: the weights are missing, damaged or of another network.
    """
    network = load_published(FaceResNet, FILE, folder)
    digest, prepare = published_digest(network), PREPARE[variant]
    network.to(device)

    def compute(images: Tensor, reference: Tensor) -> Tensor:
        check_pair(images, reference)
        # In batches of one size, so that equal pictures have equal features to the last bit.
        found = angles(network(prepare(images)), network(prepare(reference)))
        return found if variant == "authors" else found.where(found >= COPY, torch.nan)

    return Judge(compute, digest)

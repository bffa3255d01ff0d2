"""LMD, how far 98 landmarks of two faces are apart, in pixels: 0 for one picture, lower is better.

The landmarks are WFLW's, placed by the network of Adaptive Wing Loss (Wang, Bo, Li 2019): four
hourglasses, each of which draws a map of every landmark and one of the face's boundary, and sees
those of the one before it. Its convolutions also see coordinates: the row a and the column b in
[-1, 1] from the first to the last, and r = sqrt(a^2 + b^2) / sqrt(2). LMD is the mean distance of
the landmarks in a picture that is 512 pixels wide, whatever the size of the pictures. The whole
picture of a face that is aligned as FFHQ's are goes in.

There are two variants, which differ in how a picture comes to 256 pixels: ``authors`` by PyTorch's
bicubic without antialiasing, ``vqfr`` (and PMRF) by OpenCV's bilinear, in 8 bits.

A landmark is placed at the largest value of its map, a quarter of a cell towards the larger
neighbour. The published scripts read the neighbours from the flattened map, so that beside the last
column lies the next row, which is kept here. At the ends of the map they differ from us. If one
landmark of a batch lies in the last row, they take the last cell for the lower neighbour of every
landmark of the batch, and likewise the first; if one lies in the last cell, they fail. Here the
index of the neighbour ends at the map's ends, for the landmark that it concerns alone, so that no
value depends on another picture. Landmarks of faces do not lie there, and their values are equal.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.metrics.catalog import Judge, to_pixels
from models.metrics.fidelity import check_pair
from models.metrics.published import PublishedFile, load_published, published_digest
from models.ranges import uint8_to_unit

Variant = Literal["authors", "vqfr"]
FILE = PublishedFile(
    "alignment_WFLW_4HG.pth",
    "194 MB",
    "https://github.com/xinntao/facexlib/releases/download/v0.1.0/alignment_WFLW_4HG.pth",
)
SIDE = 256  # of what the network sees, in pixels; its maps have a quarter of it
PICTURE = 512  # pixels of the picture in which distances are told
STAGES, DEPTH, WIDTH = 4, 4, 256
LANDMARKS = 98
BOUNDARY = 0.05  # above which a cell of the last map is on the face's boundary


class LandmarkNetwork(nn.Module):
    """Four hourglasses behind each other, with the published keys."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = CoordinateConv(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2, self.conv3 = ConvBlock(64, 128), ConvBlock(128, 128)
        self.conv4 = ConvBlock(128, WIDTH)
        for stage in range(STAGES):
            self.add_module(f"m{stage}", Hourglass(is_first=stage == 0))
            self.add_module(f"top_m_{stage}", ConvBlock(WIDTH, WIDTH))
            self.add_module(f"conv_last{stage}", nn.Conv2d(WIDTH, WIDTH, 1))
            self.add_module(f"bn_end{stage}", nn.BatchNorm2d(WIDTH))
            self.add_module(f"l{stage}", nn.Conv2d(WIDTH, LANDMARKS + 1, 1))
            if stage + 1 < STAGES:
                self.add_module(f"bl{stage}", nn.Conv2d(WIDTH, WIDTH, 1))
                self.add_module(f"al{stage}", nn.Conv2d(LANDMARKS + 1, WIDTH, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Draw the last hourglass's maps of images [B, 3, S, S] in [0, 1], a multiple of 64.

        Returns:
            [B, 99, S / 4, S / 4]: 98 landmarks, and the boundary.
        """
        x = F.avg_pool2d(self.conv2(self.bn1(self.conv1(images)).relu()), 2)
        x = self.conv4(self.conv3(x))
        features, maps = self._stage(0, x, None)
        for stage in range(1, STAGES):
            x = x + self._part("bl", stage - 1, features) + self._part("al", stage - 1, maps)
            features, maps = self._stage(stage, x, maps[:, -1:])
        return maps

    def _stage(self, stage: int, x: Tensor, boundary: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return features [B, 256, s, s] and maps [B, 99, s, s] of one hourglass."""
        seen = self.get_submodule(f"m{stage}")(x, boundary)
        seen = self._part("conv_last", stage, self._part("top_m_", stage, seen))
        features = self._part("bn_end", stage, seen).relu()
        return features, self._part("l", stage, features)

    def _part(self, name: str, stage: int, x: Tensor) -> Tensor:
        """Apply a layer of a stage."""
        y: Tensor = self.get_submodule(f"{name}{stage}")(x)
        return y


class CoordinateConv(nn.Module):
    """A convolution that sees, behind its input, the coordinates a, b and r.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: its side.
        stride: of the convolution.
        with_boundary: whether it also sees a and b again, 0 beside the face's boundary.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        with_boundary: bool = False,
    ) -> None:
        super().__init__()
        seen = inputs + (5 if with_boundary else 3)
        self.conv = nn.Conv2d(seen, outputs, kernel, stride=stride, padding=kernel // 2)

    def forward(self, x: Tensor, boundary: Tensor | None = None) -> Tensor:
        """Convolve x [B, inputs, S, S], with the map of the boundary [B, 1, S, S] if it sees it."""
        side = x.shape[2]
        line = torch.arange(side, dtype=x.dtype, device=x.device) / (side - 1) * 2 - 1
        places = torch.stack(torch.meshgrid(line, line, indexing="ij"))  # a, b
        radius = places.square().sum(dim=0, keepdim=True).sqrt()
        fixed = torch.cat([places, radius / radius.max()]).expand(len(x), -1, -1, -1)
        edges = [] if boundary is None else [places.where(boundary > BOUNDARY, 0)]
        y: Tensor = self.conv(torch.cat([x, fixed, *edges], dim=1))
        return y


class ConvBlock(nn.Module):
    """Three convolutions one behind the other, whose outputs lie side by side, and a shortcut.

    Args:
        inputs: channels that come in.
        outputs: channels that go out: a half, a quarter and a quarter of the convolutions.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = (inputs, outputs // 2, outputs // 4, outputs // 4)
        for number in (1, 2, 3):
            before, behind = widths[number - 1 : number + 1]
            self.add_module(f"bn{number}", nn.BatchNorm2d(before))
            self.add_module(f"conv{number}", nn.Conv2d(before, behind, 3, padding=1, bias=False))
        self.downsample = nn.Sequential()
        if inputs != outputs:
            self.downsample.append(nn.BatchNorm2d(inputs))
            self.downsample.append(nn.ReLU())
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H, W]."""
        parts, last = [], x
        for number in (1, 2, 3):
            norm, conv = (self.get_submodule(f"{kind}{number}") for kind in ("bn", "conv"))
            last = conv(norm(last).relu())
            parts.append(last)
        shortcut: Tensor = self.downsample(x)
        return torch.cat(parts, dim=1) + shortcut


class Hourglass(nn.Module):
    """Features at five resolutions, down and up again.

    Args:
        is_first: whether there is no map of the boundary to see yet.
    """

    def __init__(self, *, is_first: bool) -> None:
        super().__init__()
        self.coordconv = CoordinateConv(WIDTH, WIDTH, 1, stride=1, with_boundary=not is_first)
        for level in range(1, DEPTH + 1):
            for part in ("b1", "b2", "b3"):
                self.add_module(f"{part}_{level}", ConvBlock(WIDTH, WIDTH))
        self.b2_plus_1 = ConvBlock(WIDTH, WIDTH)

    def forward(self, x: Tensor, boundary: Tensor | None) -> Tensor:
        """Map [B, 256, S, S] to the same shape; the boundary is a map of the stage before."""
        return self._level(DEPTH, self.coordconv(x, boundary))

    def _level(self, level: int, x: Tensor) -> Tensor:
        """Add what half the resolution sees to what this one sees."""
        if level == 0:
            deepest: Tensor = self.b2_plus_1(x)
            return deepest
        skip, down, up = (self.get_submodule(f"{part}_{level}") for part in ("b1", "b2", "b3"))
        low = up(self._level(level - 1, down(F.avg_pool2d(x, 2))))
        y: Tensor = skip(x) + F.interpolate(low, scale_factor=2, mode="nearest")
        return y


def prepare_authors(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] => [B, 3, 256, 256] in about [0, 1]; bicubic can overshoot."""
    return F.interpolate(uint8_to_unit(images), (SIDE, SIDE), mode="bicubic", align_corners=False)


def prepare_vqfr(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] => [B, 3, 256, 256] in [0, 1]; resized on the CPU, in 8 bits."""
    small = [
        cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        for pixels in to_pixels(images)
    ]
    levels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)
    return uint8_to_unit(levels.to(images.device))


PREPARE: dict[Variant, Callable[[Tensor], Tensor]] = {
    "authors": prepare_authors,
    "vqfr": prepare_vqfr,
}


def landmarks(maps: Tensor) -> Tensor:
    """Place a landmark in each map; see the module's text for the ends of the maps.

    Args:
        maps: [B, N, S, S].

    Returns:
        float64 [B, N, 2], (x, y) from 0 to S; a cell's middle is at its index plus a half.
    """
    side, values = maps.shape[3], maps.flatten(2)
    best = values.argmax(dim=2, keepdim=True)

    def beside(step: int) -> Tensor:
        return values.gather(2, (best + step).clamp(0, values.shape[2] - 1))

    slope = torch.cat([beside(1) - beside(-1), beside(side) - beside(-side)], dim=2)
    cells = torch.cat([best % side, best // side], dim=2)
    return cells.double() + 0.25 * slope.sign() + 0.5


def load(variant: Variant, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load LMD for the catalogue; its values are mean distances in pixels, float64.

    Args:
        variant: see above.
        folder: where `alignment_WFLW_4HG.pth` is, see `PublishedFile.find`.
        device: where to compute.

    Raises:
        CheckpointError: the weights are missing, damaged or of another network.
    """
    network = load_published(LandmarkNetwork, FILE, folder)
    digest, prepare = published_digest(network), PREPARE[variant]
    network.to(device)

    def find(images: Tensor) -> Tensor:
        maps: Tensor = network(prepare(images))[:, :LANDMARKS]
        return landmarks(maps) * (PICTURE / maps.shape[3])

    def compute(images: Tensor, reference: Tensor) -> Tensor:
        check_pair(images, reference)
        apart: Tensor = torch.linalg.vector_norm(find(images) - find(reference), dim=2)
        return apart.mean(dim=1)

    return Judge(compute, digest)

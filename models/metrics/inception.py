"""The Inception-v3 of FID: TensorFlow's network of 2015 with the keys of pytorch-fid's file.

Its features are the last ones before the classifier, 2048 means over places. It differs from
torchvision's Inception-v3: an average pool of 3 x 3 leaves its padding out of the count, the last
block pools by maxima, there are 1,008 classes, and the input is not normalised once more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.metrics.catalog import Judge
from models.metrics.published import PublishedFile, load_published, published_digest
from models.metrics.resizing import bilinear, clean

CHECKPOINT = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED = PublishedFile(
    CHECKPOINT,
    "95 MB",
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{CHECKPOINT}",
)
SIDE = 299

average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve = partial(F.max_pool2d, kernel_size=3, stride=2)


@dataclass(frozen=True, slots=True)
class Conv:
    """What is known of a convolution; of stride 1 it keeps the size, of stride 2 it pads nothing.

    Args:
        name: under which its weights are published.
        width: channels that it returns.
        kernel: height and width.
        stride: 1 or 2.
    """

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1

    def build(self, channels: int) -> nn.Sequential:
        """Build it, with its batch norm and ReLU, for an input of so many channels."""
        height, width = self.kernel
        padding = (height // 2, width // 2) if self.stride == 1 else 0
        return normed(
            nn.Conv2d(channels, self.width, self.kernel, self.stride, padding, bias=False)
        )


Pool = Callable[[Tensor], Tensor]
Step = Pool | Conv | tuple[Conv, Conv]
"""Of a branch: a pooling, a convolution, or two of the same input whose outputs are joined."""


def normed(conv: nn.Conv2d) -> nn.Sequential:
    """Put a batch norm and a ReLU behind a convolution."""
    layers = nn.Sequential()
    layers.add_module("conv", conv)
    layers.add_module("bn", nn.BatchNorm2d(conv.out_channels, eps=1e-3))
    layers.add_module("relu", nn.ReLU(inplace=True))
    return layers


class Mixed(nn.ModuleDict):
    """Branches of one input, their outputs joined.

    Args:
        channels: of the input.
        branches: each a sequence of steps.
    """

    def __init__(self, channels: int, *branches: tuple[Step, ...]) -> None:
        super().__init__()
        self.branches, self.width = branches, 0
        for branch in branches:
            width = channels
            for step in branch:
                convs = _convs(step)
                self.update({conv.name: conv.build(width) for conv in convs})
                width = sum(conv.width for conv in convs) or width
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] => [B, width, H', W']."""
        return torch.cat([self._follow(branch, x) for branch in self.branches], dim=1)

    def _follow(self, branch: tuple[Step, ...], x: Tensor) -> Tensor:
        for step in branch:
            convs = _convs(step)
            if callable(step):
                x = step(x)
            else:
                x = torch.cat([self[conv.name](x) for conv in convs], dim=1)
        return x


def _convs(step: Step) -> tuple[Conv, ...]:
    """List the convolutions of a step, none of a pooling."""
    if isinstance(step, Conv):
        return (step,)
    return step if isinstance(step, tuple) else ()


def at_35(channels: int, pooled: int) -> Mixed:
    """Build a block at the resolution of 35 x 35."""
    return Mixed(
        channels,
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (average, Conv("branch_pool", pooled)),
    )


def to_17(channels: int) -> Mixed:
    """Build the block from 35 x 35 to 17 x 17."""
    return Mixed(
        channels,
        (Conv("branch3x3", 384, (3, 3), 2),),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2),
        ),
        (halve,),
    )


def at_17(channels: int, inner: int) -> Mixed:
    """Build a block at 17 x 17: a kernel of 7 x 7 as a row and a column."""
    return Mixed(
        channels,
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", inner),
            Conv("branch7x7_2", inner, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (average, Conv("branch_pool", 192)),
    )


def to_8(channels: int) -> Mixed:
    """Build the block from 17 x 17 to 8 x 8."""
    return Mixed(
        channels,
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        (halve,),
    )


def at_8(channels: int, pool: Pool) -> Mixed:
    """Build a block at 8 x 8, whose last convolutions stand side by side."""
    return Mixed(
        channels,
        (Conv("branch1x1", 320),),
        (
            Conv("branch3x3_1", 384),
            (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
        ),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


class Inception(nn.Module):
    """FID's Inception-v3.

    Its classifier ``fc`` is not computed: it is here because the published file has it, and tells
    that file from the Inception-v3 of ImageNet's thousand classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = normed(nn.Conv2d(3, 32, 3, stride=2, bias=False))
        self.Conv2d_2a_3x3 = normed(nn.Conv2d(32, 32, 3, bias=False))
        self.Conv2d_2b_3x3 = normed(nn.Conv2d(32, 64, 3, padding=1, bias=False))
        self.Conv2d_3b_1x1 = normed(nn.Conv2d(64, 80, 1, bias=False))
        self.Conv2d_4a_3x3 = normed(nn.Conv2d(80, 192, 3, bias=False))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = at_35(192, 32), at_35(256, 64), at_35(288, 64)
        self.Mixed_6a = to_17(288)
        self.Mixed_6b, self.Mixed_6c = at_17(768, 128), at_17(768, 160)
        self.Mixed_6d, self.Mixed_6e = at_17(768, 160), at_17(768, 192)
        self.Mixed_7a = to_8(768)
        self.Mixed_7b, self.Mixed_7c = at_8(1280, average), at_8(2048, maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of images [B, 3, 299, 299] in [-1, 1]; returns [B, 2048]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halve(x))))
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        features: Tensor = x.mean(dim=(2, 3))
        return features


def clean_input(images: Tensor) -> Tensor:
    """Make clean-fid's input of uint8 images: about [-1, 1], (x - 128) / 128."""
    return (clean(images, SIDE) - 128) / 128


def legacy_input(images: Tensor) -> Tensor:
    """Make pytorch-fid's input of uint8 images: [-1, 1], 2 x - 1 of a bilinear resize."""
    return 2 * bilinear(images, SIDE) - 1


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "clean": clean_input,
    "legacy_pytorch": legacy_input,
}


def load(variant: str, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load the features of FID for the catalogue; see `load_inception`.

    Args:
        variant: of `INPUTS`: how an image becomes the network's input. Features of two variants are
            not compared.
        folder: see `load_inception`.
        device: where to compute.
    """
    model, prepare = load_inception(folder), INPUTS[variant]
    digest = published_digest(model)
    model.to(device)

    @torch.no_grad()
    def compute(images: Tensor) -> Tensor:
        features: Tensor = model(prepare(images.to(device)))
        return features

    return Judge(compute, digest)


def load_inception(folder: str | Path | None = None) -> Inception:
    """Load the published weights, frozen, in evaluation mode, float32 on the CPU.

    Args:
        folder: where the file is, see `PublishedFile.find`.

    Raises:
        CheckpointError: missing (and then where to get it), damaged, or of another network.
    """
    return load_published(Inception, PUBLISHED, folder)

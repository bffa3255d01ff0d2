"""VGG19's features for the perceptual loss: torchvision's weights without torchvision.

A convolution is named by its place: `conv3_4` is the fourth at the third resolution. What is
returned is its output before the ReLU, as Real-ESRGAN's perceptual loss takes it.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointNotFoundError, load_strict, read_state_dict

WIDTHS = (64, 128, 256, 512, 512)  # of the stages; between two of them the resolution halves
COUNTS = (2, 2, 4, 4, 4)  # convolutions of each stage
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PREFIX = "features."
CHECKPOINT = "vgg19-dcbb9e9d.pth"
WHERE = f"get https://download.pytorch.org/models/{CHECKPOINT} (575 MB) and put it there"


class VGG19(nn.Module):
    """VGG19 up to conv5_4, its last convolution, with torchvision's keys (`features.N.weight`)."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.places: dict[str, int] = {}
        channels = 3
        for stage, (width, count) in enumerate(zip(WIDTHS, COUNTS, strict=True), start=1):
            for number in range(1, count + 1):
                self.places[f"conv{stage}_{number}"] = len(self.features)
                self.features.append(nn.Conv2d(channels, width, 3, padding=1))
                self.features.append(nn.ReLU())  # not in place: its input is what we return
                channels = width
            self.features.append(nn.MaxPool2d(2))
        del self.features[-2:]  # behind conv5_4
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

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


def load_vgg19(path: str | Path | None = None) -> VGG19:
    """Load torchvision's weights, frozen, in evaluation mode, float32 on the CPU.

    Args:
        path: the file; by default the one that torchvision would have put into the cache of
            torch.hub. Nothing is downloaded.

    Raises:
        CheckpointError: missing (and then where to get it), damaged, or of another network.
    """
    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / CHECKPOINT
    try:
        state_dict = read_state_dict(path)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(f"{path}: no such file; {WHERE}") from error
    model = VGG19()
    features = {name: value for name, value in state_dict.items() if name.startswith(PREFIX)}
    load_strict(model, features, path)  # without the classifier
    return model.eval().requires_grad_(False)

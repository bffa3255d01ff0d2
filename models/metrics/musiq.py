"""MUSIQ, the multi-scale image quality transformer (Ke et al. 2021), trained on KonIQ-10k.

A picture is cut into patches of 32 x 32 at three scales: its longer side at 224, at 384, and as it
is. A small convolutional network makes a token of each patch, to which the embeddings of its place
and of its scale are added; a transformer's first token gives the score, about 0 to 100, higher is
better. Nothing is cropped, and the aspect is kept.

The resizing is pyiqa's, bicubic without a low-pass filter, as in the paper's tables. Google's
release resizes with TensorFlow, and differs by up to 1.1 points: those values are not comparable.

The published code fills the tokens of the first two scales up to 49 and 144, and sets attention
from or to the filling to -1000, of which the softmax in float32 makes zero. Pictures of one batch
have one size, so nothing is filled up here, and no value changes.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.metrics.catalog import Judge
from models.metrics.published import IQA, PublishedFile, load_published, published_digest
from models.ranges import uint8_to_model

FILE = "musiq_koniq_ckpt-e95806b9.pth"
PUBLISHED = PublishedFile(FILE, "109 MB", f"{IQA}/{FILE}")
LONGER_SIDES = (224, 384)  # of the first two scales
PATCH = 32
GRID = 10  # places that have an embedding, on a side
WIDTH, DEPTH, HEADS, HIDDEN = 384, 14, 6, 1152  # of the transformer
AT_ONCE = 1024  # patches, 70 MB of features each; a large picture has thousands


class MUSIQ(nn.Module):
    """The network, with the published names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_root = StandardisedConv(3, 64, 7, stride=2)
        self.gn_root = nn.GroupNorm(32, 64, eps=1e-6)
        self.block1 = Bottleneck()
        self.embedding = nn.Linear(256 * 8 * 8, WIDTH)
        self.transformer_encoder = Encoder()
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Score images [B, 3, H, W] in [-1, 1]; returns [B].

        NaN where one side is so short beside the other that the first scale keeps nothing of it.
        """
        if min(images.shape[2:]) * LONGER_SIDES[0] * 2 <= max(images.shape[2:]):
            return images.new_full((len(images),), torch.nan)
        scales = [cut(image) for image in pyramid(images)]
        patches, places = (torch.cat(parts, dim=-1) for parts in zip(*scales, strict=True))
        counts = torch.tensor([len(place) for _, place in scales], device=images.device)
        ids = torch.arange(len(scales), device=images.device).repeat_interleave(counts)
        flat = rearrange(patches, "b (c h w) n -> (b n) c h w", c=3, h=PATCH)
        tokens = torch.cat([self.encode(some) for some in torch.split(flat, AT_ONCE)])
        tokens = rearrange(tokens, "(b n) c -> b n c", b=len(images))
        score: Tensor = self.head(self.transformer_encoder(tokens, places, ids))
        return score[:, 0]

    def encode(self, patches: Tensor) -> Tensor:
        """Make tokens [N, 384] of patches [N, 3, 32, 32]."""
        x = self.gn_root(self.conv_root(patches)).relu()
        x = self.block1(F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, stride=2))
        token: Tensor = self.embedding(x.permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order
        return token


def pyramid(images: Tensor) -> list[Tensor]:
    """Resize images [B, 3, H, W] to the first two scales; the third is themselves."""
    scales = []
    for longer in LONGER_SIDES:
        ratio = longer / max(images.shape[2:])
        size = [round(side * ratio) for side in images.shape[2:]]  # half to even, as published
        scales.append(F.interpolate(images, size, mode="bicubic", align_corners=False))
    return [*scales, images]


def cut(images: Tensor) -> tuple[Tensor, Tensor]:
    """Cut images [B, 3, H, W] into patches, row by row; zeros around them complete the last.

    Returns:
        The patches [B, 3 * 32 * 32, N], and the index of each one's place among the embeddings [N].
    """
    height, width = images.shape[2:]
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    down, across = rows * PATCH - height, columns * PATCH - width
    border = (across // 2, across - across // 2, down // 2, down - down // 2)
    patches = F.unfold(F.pad(images, border), PATCH, stride=PATCH)
    y, x = (torch.arange(count, device=images.device) * GRID // count for count in (rows, columns))
    return patches, (y[:, None] * GRID + x).flatten()


class StandardisedConv(nn.Conv2d):
    """A convolution without bias, of kernels of mean 0 and deviation 1, padded as TensorFlow does.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side.
        stride: step, which divides the image's side.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        missing = kernel - stride
        before, after = missing // 2, missing - missing // 2
        self.border = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N, C, H, W]; the size is divided by the stride."""
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        kernel = (self.weight - mean) / (deviation + 1e-5)
        return F.conv2d(F.pad(x, self.border), kernel, stride=self.stride)


class Bottleneck(nn.Module):
    """A residual block of 64, 64 and 256 channels, whose shortcut is a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gn1 = StandardisedConv(64, 64, 1), nn.GroupNorm(32, 64, eps=1e-4)
        self.conv2, self.gn2 = StandardisedConv(64, 64, 3), nn.GroupNorm(32, 64, eps=1e-4)
        self.conv3, self.gn3 = StandardisedConv(64, 256, 1), nn.GroupNorm(32, 256, eps=1e-4)
        self.conv_proj, self.gn_proj = StandardisedConv(64, 256, 1), nn.GroupNorm(32, 256, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        """Compute [N, 256, H, W] of [N, 64, H, W]."""
        inner = self.gn1(self.conv1(x)).relu()
        inner = self.gn2(self.conv2(inner)).relu()
        total: Tensor = self.gn3(self.conv3(inner)) + self.gn_proj(self.conv_proj(x))
        return total.relu()


class Encoder(nn.Module):
    """The embeddings and the transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.empty(1, 1, WIDTH))
        places, scales = torch.empty(1, GRID**2, WIDTH), torch.empty(len(LONGER_SIDES) + 1, WIDTH)
        self.posembed_input = nn.ParameterDict({"position_emb": places})
        self.scaleembed_input = nn.ParameterDict({"scale_emb": scales})
        blocks = {f"encoderblock_{number}": EncoderBlock() for number in range(DEPTH)}
        self.transformer = nn.ModuleDict(blocks)
        self.encoder_norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, tokens: Tensor, places: Tensor, scales: Tensor) -> Tensor:
        """Encode tokens [B, N, 384] of these places and scales [N]; returns the first, [B, 384]."""
        place = self.posembed_input["position_emb"][0, places]
        x = tokens + place + self.scaleembed_input["scale_emb"][scales]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        for block in self.transformer.values():
            x = block(x)
        first: Tensor = self.encoder_norm(x[:, 0])
        return first


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.attention = Attention()
        layers = {"fc1": nn.Linear(WIDTH, HIDDEN), "fc2": nn.Linear(HIDDEN, WIDTH)}
        self.mlp = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [B, N, 384]."""
        x = x + self.attention(self.norm1(x))
        transformed: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return transformed


class Attention(nn.Module):
    """Self-attention of six heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Attend from each token [B, N, 384] to all."""
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended


def load(_: str, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load the published weights for the catalogue, float32.

    Args:
        folder: where the file is, see `PublishedFile.find`.
        device: where to score.

    Raises:
        CheckpointError: the file is missing (and then where to get it), damaged, or of another
            network, such as the one trained on AVA, whose head gives ten values.
    """
    model = load_published(MUSIQ, PUBLISHED, folder)
    digest = published_digest(model)
    model.to(device)

    def compute(images: Tensor) -> Tensor:
        scores: Tensor = model(uint8_to_model(images))
        return scores

    return Judge(compute, digest)

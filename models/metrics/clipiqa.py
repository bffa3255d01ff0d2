"""CLIP-IQA (Wang et al. 2023), as pyiqa computes it: in [0, 1], higher is better.

CLIP with a ResNet-50 says how well a picture fits to "Good image" rather than to "bad image", and
so on for five pairs of descriptions; the score is the mean probability of the good ones. The image
is neither resized nor cropped, which is possible because the positional embedding of CLIP's last
pooling is left out.

Not comparable, though of this name: the paper's own single pair "Good photo." and "Bad photo.",
clipiqa+ with learnt descriptions, torchmetrics' with other descriptions, and CLIP with a ViT.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.checkpoint import CheckpointError, check_records, read_state_dict, weights_digest
from models.metrics.catalog import Judge
from models.metrics.published import COUNTER, PublishedFile, built
from models.ranges import uint8_to_unit

# OpenAI's own file, and the names that the same weights have in timm/resnet50_clip.openai.
FILES = ("RN50.pt", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PUBLISHED = PublishedFile(
    FILES[0],
    "256 MB",
    "https://openaipublic.azureedge.net/clip/models/"
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    FILES[1:],
    "https://huggingface.co/timm/resnet50_clip.openai/resolve/main/open_clip_model.safetensors "
    "(408 MB)",
)
SCALARS = {"input_resolution", "context_length", "vocab_size"}  # in OpenAI's file, no weights
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BEGIN, END = 49406, 49407
# The tokens of each description; good and bad alternate.
PROMPTS: dict[str, tuple[int, ...]] = {
    "Good image": (886, 2867),
    "bad image": (2103, 2867),
    "Sharp image": (8157, 2867),
    "blurry image": (21977, 2867),
    "sharp edges": (8157, 20938),
    "blurry edges": (21977, 20938),
    "High resolution image": (1400, 9977, 2867),
    "low resolution image": (1042, 9977, 2867),
    "Noise-free image": (9307, 268, 1139, 2867),
    "noisy image": (33495, 2867),
}
CONTEXT, VOCABULARY, TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS = 77, 49408, 512, 12, 8
SHARED_WIDTH = 1024  # of the space of images and texts
BLOCKS = (3, 4, 6, 3)  # of each stage of the image tower
EXPANSION = 4
POOL_HEADS = 32
MIN_SIDE = 31  # below, the five halvings leave no place


class CLIP(nn.Module):
    """CLIP with a ResNet-50, with the published names."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = ImageTower()
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT, TEXT_WIDTH))
        blocks = nn.ModuleList(TextBlock() for _ in range(TEXT_DEPTH))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.empty(TEXT_WIDTH, SHARED_WIDTH))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids [P, N], which end with END and zeros behind it; returns [P, 1024]."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer.get_submodule("resblocks").children():
            x = block(x)
        last = self.ln_final(x[torch.arange(len(ids)), ids.argmax(dim=1)])  # END is the highest
        projected: Tensor = last @ self.text_projection
        return projected


class TextBlock(nn.Module):
    """Attention to what is before, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(TEXT_WIDTH, TEXT_HEADS, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(TEXT_WIDTH), nn.LayerNorm(TEXT_WIDTH)
        layers = {
            "c_fc": nn.Linear(TEXT_WIDTH, 4 * TEXT_WIDTH),
            "c_proj": nn.Linear(4 * TEXT_WIDTH, TEXT_WIDTH),
        }
        self.mlp = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [P, N, 512]."""
        normed = self.ln_1(x)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = x + self.attn(normed, normed, normed, attn_mask=later, need_weights=False)[0]
        inner = self.mlp["c_fc"](self.ln_2(x))
        transformed: Tensor = x + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))
        return transformed


class ImageTower(nn.Module):
    """CLIP's ResNet-50: three convolutions first, and averages where others take strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, BLOCKS[0], stride=1)
        self.layer2 = _stage(256, 128, BLOCKS[1], stride=2)
        self.layer3 = _stage(512, 256, BLOCKS[2], stride=2)
        self.layer4 = _stage(1024, 512, BLOCKS[3], stride=2)
        self.attnpool = AttentionPool(512 * EXPANSION)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] in [0, 1] with sides of 31 or more; returns [B, 1024]."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x = self.bn1(self.conv1((images - mean) / std)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = F.avg_pool2d(self.bn3(self.conv3(x)).relu(), 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        encoded: Tensor = self.attnpool(x)
        return encoded


def _stage(inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
    """Build ``count`` blocks, the first of which makes the change of size and channels."""
    first = ImageBlock(inputs, width, stride)
    return nn.Sequential(first, *(ImageBlock(width * EXPANSION, width) for _ in range(count - 1)))


class ImageBlock(nn.Module):
    """A residual block that averages, instead of leaving places out.

    Args:
        inputs: channels.
        width: channels inside; four times as many come out.
        stride: by which the size is divided.
    """

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, outputs = stride, width * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if inputs != outputs:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Compute [B, 4 width, H / stride, W / stride] of [B, inputs, H, W]."""
        inner = self.bn1(self.conv1(x)).relu()
        inner = self._shrink(self.bn2(self.conv2(inner)).relu())
        total: Tensor = self.bn3(self.conv3(inner)) + self.downsample(self._shrink(x))
        return total.relu()

    def _shrink(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """One token from the mean of all places, which attends to all places and itself.

    The positional embedding, of 7 x 7 places, is loaded because it is published, and left out.

    Args:
        width: channels of a place.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(7 * 7 + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, SHARED_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Pool [B, C, H, W] into [B, 1024]."""
        places = x.flatten(2).transpose(1, 2)
        mean = places.mean(dim=1, keepdim=True)
        tokens = torch.cat([mean, places], dim=1)
        query, key, value = (
            layer(some).unflatten(-1, (POOL_HEADS, -1)).transpose(1, 2)
            for layer, some in ((self.q_proj, mean), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.c_proj(pooled.transpose(1, 2).flatten(1))
        return projected


class ClipIqa(nn.Module):
    """The score, of the image tower and the ten descriptions, which are encoded here once.

    Args:
        clip: with its weights.
    """

    texts: Tensor

    @torch.no_grad()
    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.visual = clip.visual
        texts = F.normalize(clip.encode_text(prompt_ids()), dim=1)
        self.register_buffer("texts", clip.logit_scale.exp() * texts)

    def forward(self, images: Tensor) -> Tensor:
        """Score images [B, 3, H, W] in [0, 1]; returns [B] in [0, 1].

        Raises:
            ValueError: a side below 31 pixels.
        """
        if min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels: the five halvings of "
                f"CLIP's image tower need sides of at least {MIN_SIDE}"
            )
        logits = F.normalize(self.visual(images), dim=1) @ self.texts.T
        good = rearrange(logits, "b (pair two) -> b pair two", two=2).softmax(dim=2)[..., 0]
        return good.mean(dim=1)


def prompt_ids() -> Tensor:
    """Return the token ids of the descriptions [10, 6].

    CLIP was trained on 77 places, but none attends to those behind it: they change no value.
    """
    longest = max(len(words) for words in PROMPTS.values())
    return torch.tensor(
        [(BEGIN, *words, END, *[0] * (longest - len(words))) for words in PROMPTS.values()]
    )


def float_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the score depends on, in float32: no scalars, no counters of batches.

    The digest is taken of these, so that it does not depend on the container: OpenAI's float16
    become the float32 that the other files hold.
    """
    return {
        name: value.float()
        for name, value in state_dict.items()
        if name not in SCALARS and not name.endswith(COUNTER)
    }


def build(weights: Mapping[str, Tensor], source: object) -> ClipIqa:
    """Build the score of `float_weights`, frozen, on the CPU.

    Raises:
        CheckpointError: weights of another network; ``source`` says where they are from.
    """
    return ClipIqa(built(CLIP, weights, source))


def read_clip(path: Path) -> dict[str, Tensor]:
    """Read CLIP's tensors by name: OpenAI's TorchScript archive, or any other file of weights.

    Raises:
        CheckpointError: damaged, or not weights.
    """
    if not _is_archive(path):
        return read_state_dict(path)
    try:
        check_records(path)
        # It compiles the program, whose methods are not called: we take its tensors.
        program = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        return dict(program.state_dict())
    except (RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: damaged ({path.stat().st_size} bytes; {error}). Download it again"
        ) from error


def _is_archive(path: Path) -> bool:
    """Tell whether a file is a TorchScript program, which `torch.load` refuses to read safely."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())


def load(_: str, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load the published weights for the catalogue, float32.

    Args:
        folder: where one of `FILES` is, see `PublishedFile.find`.
        device: where to score.

    Raises:
        CheckpointError: the file is missing (and then where to get it), damaged, or of another
            network.
    """
    path = PUBLISHED.find(folder)
    weights = float_weights(read_clip(path))
    model = build(weights, path).to(device)

    def compute(images: Tensor) -> Tensor:
        scores: Tensor = model(uint8_to_unit(images))
        return scores

    return Judge(compute, weights_digest(weights))

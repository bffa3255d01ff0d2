"""DINOv2's features (Oquab et al. 2023): the class token of ViT-L/14 after the last normalisation.

The network is transformers' Dinov2Model. Its table of positions was trained for 37 x 37 patches,
and an image of 224 pixels has 16 x 16. Facebook's code and transformers interpolate the table at
different places, so that features of the same weights differ. Here it is made once as Facebook's
code makes it, which the paper's tables used, and stands in the network at its final size.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoint import CheckpointError, load_strict, read_state_dict, weights_digest
from models.metrics.backbones import IMAGENET_MEAN, IMAGENET_STD
from models.metrics.catalog import Judge
from models.metrics.published import PublishedFile
from models.metrics.resizing import clean

SIDE = 224
HUB_ID, WEIGHTS = "facebook/dinov2-large", "model.safetensors"
CHECKPOINT = "dinov2_vitl14_pretrain.pth"
DOWNLOAD = f"give the folder of `hf download {HUB_ID} --local-dir FOLDER`, with its {WEIGHTS}"
PUBLISHED = PublishedFile(
    CHECKPOINT,
    "1.2 GB",
    f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{CHECKPOINT}",
    otherwise=DOWNLOAD,
)
POSITIONS = "embeddings.position_embeddings"
OFFSET = 0.1  # that Facebook's code adds to the number of patches for its scale factor
QKV = re.compile(r"(encoder\.layer\.\d+\.attention)\.qkv\.(weight|bias)")

# From Facebook's names to those of the files on the Hugging Face hub, in this order.
RENAMED = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^pos_embed$", POSITIONS),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)

# From those to the names in transformers, for its newer versions.
OWN_NAMES = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The size of a DINOv2 without registers."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    trained_patches: int = 37
    """On each side of the images that the table of positions was trained for."""
    patch_size: int = 14


VIT_L14 = Architecture(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)


def load(_variant: str, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load DINOv2's features for the catalogue, the same for all variants; see `load_dinov2`."""
    model, digest = load_dinov2(folder, VIT_L14)
    model.to(device)

    @torch.no_grad()
    def compute(images: Tensor) -> Tensor:
        output = model(pixel_values=network_input(images.to(device)))
        features: Tensor = output.last_hidden_state[:, 0]
        return features

    return Judge(compute, digest)


def network_input(images: Tensor) -> Tensor:
    """Resize uint8 images [B, 3, H, W] cleanly to 224 x 224, and normalise them as ImageNet's."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (clean(images, SIDE) / 255 - mean) / std


def load_dinov2(
    folder: str | Path | None = None, architecture: Architecture = VIT_L14
) -> tuple[Any, str]:
    """Load published weights, frozen, in evaluation mode, float32 on the CPU.

    Args:
        folder: with `dinov2_vitl14_pretrain.pth`, Facebook's file, or `model.safetensors` of
            facebook/dinov2-large, which holds the same values under other names. By default
            torch.hub's cache, then that of the Hugging Face hub. Nothing is downloaded.
        architecture: that the weights must be of.

    Returns:
        transformers' Dinov2Model for images of 224 pixels, and the digest of the weights as they
        were published, the same for both files.

    Raises:
        CheckpointError: missing (and then where to get it), damaged, or of another network.
    """
    path = _find(folder)
    state = published_names(read_state_dict(path))
    digest = weights_digest(state)
    positions, side = state.get(POSITIONS), architecture.trained_patches
    if positions is None or positions.shape != (1, side**2 + 1, architecture.hidden_size):
        raise CheckpointError(
            f"{path}: no DINOv2 of {architecture}: its table of positions is "
            f"{'missing' if positions is None else list(positions.shape)}; get {PUBLISHED.where}, "
            f"or {DOWNLOAD}"
        )
    state[POSITIONS] = resized_positions(positions.float(), SIDE // architecture.patch_size)
    return _build(state, architecture, path), digest


def _find(folder: str | Path | None) -> Path:
    """Find the file of either layout."""
    if folder is not None:
        return PUBLISHED.find(folder, Path(folder) / WEIGHTS)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(HUB_ID, WEIGHTS)
    return PUBLISHED.find(None, *([Path(cached)] if isinstance(cached, str) else []))


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name weights as the files on the Hugging Face hub do, whichever of both layouts they have.

    Facebook's matrices of query, key and value lie in one.
    """
    named = {}
    for name, value in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901  (one after the other)
        if (match := QKV.fullmatch(name)) is None:
            named[name] = value
            continue
        for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
            named[f"{match[1]}.attention.{part}.{match[2]}"] = rows
    return named


def resized_positions(positions: Tensor, patches: int) -> Tensor:
    """Interpolate a table of positions [1, 1 + P^2, D] to [1, 1 + patches^2, D], Facebook's way.

    Bicubic, not antialiased. The scale is (patches + 0.1) / P, and not patches / P: the places
    where the table is sampled lie a little closer together.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    table = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (patches + OFFSET) / side
    table = F.interpolate(table, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], table.flatten(2).transpose(1, 2)], dim=1)


def _build(state: Mapping[str, Tensor], architecture: Architecture, path: Path) -> Any:
    """Build transformers' network with exactly these weights.

    Not by its from_pretrained: that patches torch.linspace while it first opens a meta device, and
    PyTorch then remembers the patched function for good as what a device context applies to.
    """
    from transformers import Dinov2Config, Dinov2Model

    with torch.device("meta"):
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=architecture.hidden_size,
                num_hidden_layers=architecture.num_hidden_layers,
                num_attention_heads=architecture.num_attention_heads,
                patch_size=architecture.patch_size,
                image_size=SIDE,
            )
        )
    named = {_transformers_name(k, model.state_dict()): v.float() for k, v in state.items()}
    try:
        load_strict(model, named, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: get {PUBLISHED.where}, or {DOWNLOAD}") from error
    return model.eval().requires_grad_(False)


def _transformers_name(name: str, known: Mapping[str, Tensor]) -> str:
    """Translate a published name to the one in the installed transformers, which may be the same.

    From 5.24 on its attention has other names than its files.
    """
    translated = name
    for published, own in OWN_NAMES:
        translated = translated.replace(published, own)
    return translated if translated in known else name

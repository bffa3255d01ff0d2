"""DINOv2: both published layouts, Facebook's table of positions, what is refused."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics import dinov2
from models.metrics.catalog import METRICS
from models.metrics.dinov2 import (
    CHECKPOINT,
    POSITIONS,
    VIT_L14,
    WEIGHTS,
    Architecture,
    load_dinov2,
    network_input,
    published_names,
    resized_positions,
)
from models.metrics.frechet import frechet_distance
from models.metrics.mmd import mmd

TINY = Architecture(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)


def facebooks_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """List what `dinov2_vitl14_pretrain.pth` holds, at another size."""
    d, patch = architecture.hidden_size, architecture.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + architecture.trained_patches**2, d),
        "mask_token": (1, d),
        "patch_embed.proj.weight": (d, 3, patch, patch),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    linear = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d)}
    linear["mlp.fc2"] = (d, 4 * d)
    for block in range(architecture.num_hidden_layers):
        for name, shape in linear.items():
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
        for number in (1, 2):
            shapes[f"blocks.{block}.ls{number}.gamma"] = (d,)
            shapes[f"blocks.{block}.norm{number}.weight"] = (d,)
            shapes[f"blocks.{block}.norm{number}.bias"] = (d,)
    return shapes


def facebooks(architecture: Architecture = TINY) -> dict[str, Tensor]:
    """Draw weights in Facebook's layout; nothing is so small that it does not count."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in facebooks_shapes(architecture).items():
        value = torch.randn(shape, generator=generator)
        if name.endswith(("gamma", "norm1.weight", "norm2.weight")) or name == "norm.weight":
            value = 1 + 0.3 * value
        elif len(shape) in {2, 4} and name != "mask_token":
            value /= value[0].numel() ** 0.5
        state[name] = value
    return state


def on_the_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name Facebook's weights as the files of facebook/dinov2-large name them."""
    named = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for block in range(TINY.num_hidden_layers):
        ours, theirs = f"encoder.layer.{block}", f"blocks.{block}"
        for kind in ("weight", "bias"):
            query, key, value = state[f"{theirs}.attn.qkv.{kind}"].chunk(3)
            named[f"{ours}.attention.attention.query.{kind}"] = query
            named[f"{ours}.attention.attention.key.{kind}"] = key
            named[f"{ours}.attention.attention.value.{kind}"] = value
            named[f"{ours}.attention.output.dense.{kind}"] = state[f"{theirs}.attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                named[f"{ours}.{name}.{kind}"] = state[f"{theirs}.{name}.{kind}"]
        for number in (1, 2):
            named[f"{ours}.layer_scale{number}.lambda1"] = state[f"{theirs}.ls{number}.gamma"]
    return {name: value.clone() for name, value in named.items()}


def write(state: Mapping[str, Tensor], folder: Path, layout: str) -> Path:
    """Write the file of a layout: "facebook" or "hub"."""
    folder.mkdir(exist_ok=True)
    if layout == "facebook":
        torch.save(dict(state), folder / CHECKPOINT)
    else:
        save_file(on_the_hub(state), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def images(n: int = 2) -> Tensor:
    """Draw smooth uint8 pictures."""
    coarse = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 255
    return F.interpolate(coarse, (80, 60), mode="bilinear").byte()


def by_definition(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Compute the class token as a vision transformer with layer scales is defined."""
    d, heads = TINY.hidden_size, TINY.num_attention_heads

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (d,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    tokens = x.flatten(2).transpose(1, 2)
    tokens = torch.cat([state["cls_token"].expand(len(x), -1, -1), tokens], dim=1)
    tokens = tokens + resized_positions(state["pos_embed"], 16)
    for block in (f"blocks.{number}" for number in range(TINY.num_hidden_layers)):
        qkv = linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(2, (3, heads, d // heads)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / (d // heads) ** 0.5).softmax(dim=-1)
        mixed = linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        tokens = tokens + state[f"{block}.ls1.gamma"] * mixed
        hidden = F.gelu(linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1"))
        tokens = tokens + state[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(tokens, "norm")[:, 0]


def test_both_layouts_are_one_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal features, those of the definition, and an equal digest."""
    monkeypatch.setattr(dinov2, "VIT_L14", TINY)
    state = facebooks()
    first, second = (
        METRICS["fid_dinov2"].load_set(write(state, tmp_path / layout, layout))
        for layout in ("facebook", "hub")
    )
    features = first.features(images())

    assert features.shape == (2, 32)
    assert features.dtype == torch.float32
    assert first.digest == second.digest
    assert torch.equal(features, second.features(images()))
    torch.testing.assert_close(
        features, by_definition(state, network_input(images())), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(features[1:], first.features(images()[1:]), rtol=1e-4, atol=1e-4)


def test_metrics_of_one_network_load_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network of the first serves the others, each with its own distance."""
    monkeypatch.setattr(dinov2, "VIT_L14", TINY)
    fid = METRICS["fid_dinov2"].load_set(write(facebooks(), tmp_path / "weights", "facebook"))
    shutil.rmtree(tmp_path / "weights")
    biased, unbiased = (
        METRICS[name].load_set(shared=fid) for name in ("mmd_dinov2", "mmd_dinov2_unbiased")
    )
    x, y = fid.features(images(3)), fid.features(images(3).flip(1))

    assert biased.features is unbiased.features is fid.features
    assert biased.digest == fid.digest
    assert biased.distance(x, y) == mmd(x, y)
    assert unbiased.distance(x, y) == mmd(x, y, unbiased=True)
    with pytest.warns(UserWarning, match="of 3 images, below 2048"):
        assert fid.distance(x, y) == frechet_distance(x, y)


@pytest.mark.filterwarnings("ignore:a Frechet distance of")
@pytest.mark.parametrize("name", ["fid_dinov2", "mmd_dinov2", "mmd_dinov2_unbiased"])
def test_distances_grow_with_the_noise(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set is nearest to itself, and further the more its pictures are spoilt."""
    monkeypatch.setattr(dinov2, "VIT_L14", TINY)
    judge = METRICS[name].load_set(write(facebooks(), tmp_path, "facebook"))
    hq = images(8)
    noise = torch.randn(hq.shape, generator=torch.Generator().manual_seed(2))
    ladder = [(hq + level * noise).clamp(0, 255).byte() for level in (0, 48, 96, 192)]
    reference = judge.features(hq)
    distances = [judge.distance(judge.features(rung), reference) for rung in ladder]

    assert distances == sorted(distances)
    assert distances[3] > distances[1] > distances[0]
    if name != "mmd_dinov2_unbiased":  # which leaves out that a picture equals itself
        assert distances[0] == pytest.approx(0, abs=1e-6)


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel with a = -0.75."""
    x = np.abs(x)
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def test_positions_are_sampled_where_facebook_samples_them() -> None:
    """Row i of 16 at (i + 1/2) 37 / 16.1 - 1/2 of 37, by a kernel written down here."""
    places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    weights = np.zeros((16, 37))
    for row, place in enumerate(places):
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[row, min(max(tap, 0), 36)] += cubic(np.array(place - tap))
    table = facebooks()["pos_embed"]
    grid = table[0, 1:].double().numpy().reshape(37, 37, 32)
    expected = np.einsum("ip,jq,pqd->ijd", weights, weights, grid).reshape(256, 32)
    found = resized_positions(table, 16)

    assert found.shape == (1, 257, 32)
    assert torch.equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:].numpy(), expected, atol=2e-5)


def test_transformers_own_interpolation_would_give_other_features(tmp_path: Path) -> None:
    """The trap: the same weights out of the box differ by a third in the table of positions."""
    model, _ = load_dinov2(write(facebooks(), tmp_path / "hub", "hub"), TINY)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=518
    )
    naive = Dinov2Model(config).eval()
    table = {"embeddings.position_embeddings": facebooks()["pos_embed"]}
    naive.load_state_dict(model.state_dict() | table)
    ours = model.embeddings.position_embeddings[:, 1:]
    theirs = naive.embeddings.interpolate_pos_encoding(torch.zeros(1, 257, 32), 224, 224)[:, 1:]
    x = network_input(images())
    with torch.no_grad():
        features, other = (some(pixel_values=x).pooler_output for some in (model, naive))

    assert ((ours - theirs).norm() / theirs.norm()).item() == pytest.approx(0.30, abs=0.02)
    # these layers are random: a trained network looks at places more than they do
    assert (features - other).norm() > 0.003 * features.norm()


def test_the_published_network_is_known_whole() -> None:
    """ViT-L/14 has 304,368,640 values, and Facebook's names are transformers' own, translated."""
    meta = {
        name: torch.empty(shape, device="meta") for name, shape in facebooks_shapes(VIT_L14).items()
    }
    named = published_names(meta)

    assert sum(value.numel() for value in named.values()) == 304_368_640
    assert published_names(named).keys() == named.keys()
    assert len(named) == 24 * 18 + 7


@pytest.mark.parametrize("layout", ["facebook", "hub"])
@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Architecture(hidden_size=48, num_hidden_layers=2, num_attention_heads=2), "positions"),
        (Architecture(hidden_size=32, num_hidden_layers=3, num_attention_heads=2), "unexpected"),
        (Architecture(hidden_size=32, num_hidden_layers=1, num_attention_heads=2), "missing"),
        (
            Architecture(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, trained_patches=16
            ),
            r"positions is \[1, 257, 32\]",
        ),
    ],
)
def test_other_networks_are_refused(
    found: Architecture, message: str, layout: str, tmp_path: Path
) -> None:
    """Of another width, depth or training size; the message says where to get the right one."""
    state = facebooks(found)
    if layout == "hub":
        save_file(
            {k: v.contiguous() for k, v in published_names(state).items()}, tmp_path / WEIGHTS
        )
    else:
        torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match=f"{message}.*get https://dl.fbaipublicfiles"):
        load_dinov2(tmp_path, TINY)


def test_loading_leaves_pytorch_as_it_was(tmp_path: Path) -> None:
    """What transformers' own loader patches is not patched: a meta device still applies to all."""
    load_dinov2(write(facebooks(), tmp_path, "facebook"), TINY)
    with torch.device("meta"):
        assert torch.linspace(0, 1, 2).is_meta


def test_registers_and_misshapen_tensors_are_refused(tmp_path: Path) -> None:
    """A variant with register tokens has one tensor more; each is named."""
    write({**facebooks(), "register_tokens": torch.zeros(1, 4, 32)}, tmp_path, "facebook")
    with pytest.raises(CheckpointError, match="register_tokens"):
        load_dinov2(tmp_path, TINY)
    write({**facebooks(), "norm.weight": torch.zeros(31)}, tmp_path, "facebook")
    with pytest.raises(CheckpointError, match=r"layernorm\.weight"):
        load_dinov2(tmp_path, TINY)


def test_a_missing_file_is_named_and_both_caches_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch.hub's first, then that of the Hugging Face hub, as its client fills it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    for folder, place in ((tmp_path, tmp_path), (None, tmp_path / "torch" / "checkpoints")):
        with pytest.raises(CheckpointNotFoundError) as caught:
            METRICS["mmd_dinov2"].load_set(folder)
        assert str(caught.value).startswith(f"{place / CHECKPOINT}: no such file; get https://")
        assert "(1.2 GB)" in str(caught.value)
        assert "hf download facebook/dinov2-large --local-dir FOLDER" in str(caught.value)

    repository = tmp_path / "hf" / "models--facebook--dinov2-large"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    (repository / "snapshots").mkdir()
    write(facebooks(), repository / "snapshots" / "0123", "hub")
    _, digest = load_dinov2(None, TINY)
    (tmp_path / "torch").mkdir()
    write({**facebooks(), "norm.bias": torch.ones(32)}, tmp_path / "torch/checkpoints", "facebook")

    assert load_dinov2(None, TINY)[1] != digest


def test_the_input_is_clean_and_normalised() -> None:
    """A grey becomes ImageNet's normalised grey, at 224 x 224."""
    grey = torch.full((1, 3, 50, 40), 128, dtype=torch.uint8)
    expected = (128 / 255 - torch.tensor(dinov2.IMAGENET_MEAN)) / torch.tensor(dinov2.IMAGENET_STD)
    found = network_input(grey)

    assert found.shape == (1, 3, 224, 224)
    torch.testing.assert_close(found[0, :, 100, 7], expected)
    assert POSITIONS in published_names(facebooks())

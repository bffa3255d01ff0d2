"""Small random Q-Align checkpoints in the published layout, for tests and plumbing.

The layout is written down here from the published key list, not taken from our network, so that a
network with other names cannot load what it wrote itself. Scores of such weights are noise.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# Every width differs, so that a mixed-up pair does not fit. rms_norm_eps is not the default on
# purpose. Irrelevant fields are what the published file is full of.
TINY: dict[str, Any] = {
    "architectures": ["MPLUGOwl2LlamaForCausalLM"],
    "model_type": "mplug_owl2",
    "auto_map": {"AutoModelForCausalLM": "modeling_mplug_owl2.MPLUGOwl2LlamaForCausalLM"},
    "hidden_act": "silu",
    "hidden_size": 32,
    "image_aspect_ratio": "pad",
    "intermediate_size": 56,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
    "visual_config": {
        "visual_model": {
            "hidden_act": "gelu",  # a lie that the original ignores
            "hidden_size": 24,
            "image_size": 56,
            "intermediate_size": 40,
            "layer_norm_eps": 1e-6,
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "patch_size": 14,
            "temperature": 1.0,
        },
        "visual_abstractor": {
            "encoder_hidden_size": 24,
            "grid_size": 4,
            "hidden_size": 24,
            "intermediate_size": 44,
            "layer_norm_eps": 1e-6,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_learnable_queries": 6,
        },
    },
}
SIZE_7B: dict[str, Any] = {
    **{"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    **{"num_hidden_layers": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    "visual_config": {
        "visual_model": {
            **{"hidden_size": 1024, "image_size": 448, "intermediate_size": 4096},
            **{"num_hidden_layers": 24, "patch_size": 14},
        },
        "visual_abstractor": {
            **{"encoder_hidden_size": 1024, "grid_size": 32, "hidden_size": 1024},
            **{"intermediate_size": 2816, "num_hidden_layers": 6, "num_learnable_queries": 64},
        },
    },
}
# Standard deviations small enough that every epsilon matters: {part of a name: deviation}.
QUIET = {
    "patch_embed": 4e-4,
    "cls_token": 0.01,
    "position_embedding": 0.01,
    "query_embeds": 0.01,
    "mlp.w1": 0.02,
    "mlp.w3": 0.02,
    "visual_fc": 0.004,
    "vit_eos": 0.02,
    "embed_tokens": 0.02,
    "lm_head": 0.2,
}


def layout(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """List the published names and shapes of a configuration."""
    L, H, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    K = config["num_key_value_heads"] * L // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, L),
        "model.norm.weight": (L,),
        "lm_head.weight": (V, L),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for way in (0, 1):
            shapes[f"{layer}.self_attn.k_proj.multiway.{way}.weight"] = (K, L)
            shapes[f"{layer}.self_attn.v_proj.multiway.{way}.weight"] = (K, L)
            shapes[f"{layer}.input_layernorm.multiway.{way}.weight"] = (L,)
            shapes[f"{layer}.post_attention_layernorm.multiway.{way}.weight"] = (L,)
        shapes[f"{layer}.self_attn.q_proj.weight"] = (L, L)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (L, L)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (H, L)
        shapes[f"{layer}.mlp.up_proj.weight"] = (H, L)
        shapes[f"{layer}.mlp.down_proj.weight"] = (L, H)
    return shapes | _vision(config) | _abstractor(config)


def _with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _vision(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    vision = config["visual_config"]["visual_model"]
    W, M, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    root = "model.vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}.embeddings.cls_token": (1, 1, W),
        f"{root}.embeddings.position_embedding": (1, 1 + (vision["image_size"] // patch) ** 2, W),
        f"{root}.embeddings.patch_embed.weight": (W, 3, patch, patch),
        **_with_bias(f"{root}.embeddings.pre_layernorm", W),
        **_with_bias(f"{root}.post_layernorm", W),
    }
    for i in range(vision["num_hidden_layers"]):
        layer = f"{root}.encoder.layers.{i}"
        shapes |= _with_bias(f"{layer}.self_attn.query_key_value", 3 * W, W)
        shapes |= _with_bias(f"{layer}.self_attn.dense", W, W)
        shapes |= _with_bias(f"{layer}.input_layernorm", W)
        shapes |= _with_bias(f"{layer}.post_attention_layernorm", W)
        shapes |= _with_bias(f"{layer}.mlp.fc1", M, W)
        shapes |= _with_bias(f"{layer}.mlp.fc2", W, M)
    return shapes


def _abstractor(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    abstractor = config["visual_config"]["visual_abstractor"]
    W, M = abstractor["hidden_size"], abstractor["intermediate_size"]
    Q = abstractor["num_learnable_queries"]
    root = "model.visual_abstractor"
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}.query_embeds": (1, Q, W),
        f"{root}.vit_eos": (1, 1, config["hidden_size"]),
        **_with_bias(f"{root}.visual_fc", config["hidden_size"], W),
    }
    for i in range(abstractor["num_hidden_layers"]):
        layer = f"{root}.encoder.layers.{i}.crossattention"
        shapes[f"{layer}.attention.q_pos_embed"] = (Q, W)
        shapes[f"{layer}.attention.k_pos_embed"] = (1 + abstractor["grid_size"] ** 2, W)
        for part in ("query", "key", "value"):
            shapes |= _with_bias(f"{layer}.attention.{part}", W, W)
        shapes |= _with_bias(f"{layer}.norm1", W) | _with_bias(f"{layer}.normk", W)
        shapes |= _with_bias(f"{layer}.output.out_proj", W, W)
        shapes |= _with_bias(f"{layer}.output.norm2", W)
        shapes |= _with_bias(f"{layer}.output.mlp.w1", M, W)
        shapes |= _with_bias(f"{layer}.output.mlp.w3", M, W)
        shapes |= _with_bias(f"{layer}.output.mlp.w2", W, M)
        shapes |= _with_bias(f"{layer}.output.mlp.ffn_ln", M)
    return shapes


def _position_code(width: int, position: float) -> list[float]:
    angles = [position / 10000 ** (2 * j / width) for j in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def position_table(name: str, shape: tuple[int, ...]) -> Tensor:
    """Compute a q_pos_embed or k_pos_embed, float64, one number at a time."""
    count, width = shape
    if name.endswith("q_pos_embed"):
        return torch.tensor([_position_code(width, p) for p in range(count)], dtype=torch.float64)
    side = math.isqrt(count - 1)
    rows = [
        _position_code(width // 2, column) + _position_code(width // 2, row)
        for row in range(side)
        for column in range(side)
    ]
    return torch.tensor([[0.0] * width, *rows], dtype=torch.float64)


def random_state(
    config: Mapping[str, Any] = TINY, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Draw random weights; norm weights lie around 1, position tables are the real ones."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout(config).items():
        noise = torch.randn(shape, generator=generator)
        quiet = [deviation for part, deviation in QUIET.items() if part in name]
        if name.endswith("_pos_embed"):
            value = position_table(name, shape)
        elif quiet:
            value = noise * quiet[0]
        elif "post_layernorm" in name:  # the vision tokens enter the abstractor this quietly
            value = 0.02 * (1 + 0.3 * noise) if name.endswith("weight") else 0.005 * noise
        elif "norm" in name or "ffn_ln" in name:
            value = 1 + 0.3 * noise if name.endswith("weight") else 0.1 * noise
        else:
            value = noise * (0.1 if len(shape) == 1 else 0.8 / math.sqrt(shape[-1]))
        state[name] = value.to(dtype)
    return state


def write_checkpoint(
    folder: Path,
    state: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] = TINY,
    kind: str = "bin",
    shards: int = 2,
) -> Path:
    """Write a folder as published: config, shards, index, and the stale ``inv_freq`` keys.

    Args:
        folder: created if absent.
        state: tensors by name; ``random_state(config)`` by default.
        config: content of config.json.
        kind: "bin" or "safetensors".
        shards: number of weights files; with 1 there is no index.

    Returns:
        The folder.
    """
    stem, suffix = {"bin": ("pytorch_model", "bin"), "safetensors": ("model", "safetensors")}[kind]
    state = dict(random_state(config) if state is None else state)
    for i in range(config["num_hidden_layers"]):
        state[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    names = sorted(state)
    weight_map = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{suffix}"
        file = file if shards > 1 else f"{stem}.{suffix}"
        part = {name: state[name] for name in names[shard::shards]}
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder

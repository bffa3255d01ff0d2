"""The eye of the Q-Align reference: pixels, vision tower and abstractor by hand."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]


def softmax(x: Array) -> Array:
    """Exponentials that sum to 1."""
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


class Vision:
    """The image's half as functions of a state dict; ``mistake`` names one deviation, or none."""

    def __init__(
        self, state: Mapping[str, Any], config: Mapping[str, Any], mistake: str = ""
    ) -> None:
        self.state = {name: value.double().numpy() for name, value in state.items()}
        self.config = config
        self.mistake = mistake

    def pixels(self, image: NDArray[np.uint8]) -> Array:
        """Pad, resize, normalise; [3, image, image]."""
        height, width, _ = image.shape
        side = max(height, width)
        colour = (0, 0, 0) if self.mistake == "black_padding" else (122, 116, 104)
        extra = 1 if self.mistake == "ceil_padding" else 0
        top, left = (side - height + extra) // 2, (side - width + extra) // 2
        if self.mistake == "corner_padding":
            top = left = 0
        square = np.empty((side, side, 3), np.uint8)
        for row in range(side):
            for column in range(side):
                y, x = row - top, column - left
                inside = 0 <= y < height and 0 <= x < width
                square[row, column] = image[y, x] if inside else colour
        if self.mistake == "stretched":
            square = image
        size = self.config["visual_config"]["visual_model"]["image_size"]
        kind = Image.Resampling.BILINEAR if self.mistake == "bilinear" else Image.Resampling.BICUBIC
        small = np.asarray(Image.fromarray(square).resize((size, size), kind))
        if self.mistake == "blue_first":
            small = small[:, :, ::-1]
        mean, deviation = (
            [0.48145466, 0.4578275, 0.40821073],
            [0.26862954, 0.26130258, 0.27577711],
        )
        if self.mistake == "imagenet_mean":
            mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        channels = [(small[:, :, c] / 255 - mean[c]) / deviation[c] for c in range(3)]
        return np.stack(channels)

    def linear(self, x: Array, name: str) -> Array:
        """Apply ``name``.weight and, if there is one, ``name``.bias."""
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def layer_norm(self, x: Array, name: str, eps: float) -> Array:
        """Normalise every row to mean 0 and variance 1, then scale and shift."""
        rows = [(row - row.mean()) / math.sqrt(row.var() + eps) for row in x]
        return np.stack(rows) * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attend(
        self, q: Array, k: Array, v: Array, heads: int, allowed: Callable[[int, int], bool]
    ) -> Array:
        """Attend head by head and query by query; [queries, width]."""
        d = q.shape[1] // heads
        out = np.zeros_like(q)
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            for i in range(len(q)):
                keys = [j for j in range(len(k)) if allowed(i, j)]
                weights = softmax(k[keys, part] @ q[i, part] / math.sqrt(d))
                out[i, part] = weights @ v[keys, part]
        return out

    def see(self, pixels: Array) -> Array:
        """The ViT's tokens, class token first; [1 + patches, width]."""
        config = self.config["visual_config"]["visual_model"]
        eps = 1e-5 if self.mistake == "vision_eps" else config["layer_norm_eps"]
        root, patch = "model.vision_model", config["patch_size"]
        kernel = self.state[f"{root}.embeddings.patch_embed.weight"]
        tokens = [self.state[f"{root}.embeddings.cls_token"][0, 0]]
        for y in range(0, config["image_size"], patch):
            for x in range(0, config["image_size"], patch):
                window = pixels[:, y : y + patch, x : x + patch]
                tokens.append(np.array([(window * one).sum() for one in kernel]))
        z = np.stack(tokens) + self.state[f"{root}.embeddings.position_embedding"][0]
        z = self.layer_norm(z, f"{root}.embeddings.pre_layernorm", eps)
        count = config["num_hidden_layers"] - (self.mistake == "penultimate_layer")
        for i in range(count):
            layer = f"{root}.encoder.layers.{i}"
            h = self.layer_norm(z, f"{layer}.input_layernorm", eps)
            q, k, v = self.unpack(self.linear(h, f"{layer}.self_attn.query_key_value"))
            heads = config["num_attention_heads"]
            mixed = self.attend(q, k, v, heads, lambda i, j: True)
            z = z + self.linear(mixed, f"{layer}.self_attn.dense")
            h = self.layer_norm(z, f"{layer}.post_attention_layernorm", eps)
            h = self.linear(h, f"{layer}.mlp.fc1")
            if self.mistake == "exact_gelu":
                h = h * np.vectorize(lambda t: 0.5 * (1 + math.erf(t / math.sqrt(2))))(h)
            else:
                h = h * sigmoid(1.702 * h)
            z = z + self.linear(h, f"{layer}.mlp.fc2")
        normed = self.layer_norm(z, f"{root}.post_layernorm", eps)
        if self.mistake == "norm_class_only":
            return np.concatenate([normed[:1], z[1:]])
        return normed[1:] if self.mistake == "class_token_dropped" else normed

    def unpack(self, packed: Array) -> tuple[Array, Array, Array]:
        """Split query_key_value's output into Q, K, V, each [tokens, width]."""
        width = packed.shape[1] // 3
        if self.mistake == "qkv_thirds":
            return packed[:, :width], packed[:, width : 2 * width], packed[:, 2 * width :]
        heads = self.config["visual_config"]["visual_model"]["num_attention_heads"]
        d = width // heads
        parts = []
        for which in range(3):
            columns = [h * 3 * d + which * d + c for h in range(heads) for c in range(d)]
            parts.append(packed[:, columns])
        return parts[0], parts[1], parts[2]

    def abstract(self, vision: Array) -> Array:
        """Image tokens in the language model's width, the end-of-image token last."""
        config = self.config["visual_config"]["visual_abstractor"]
        ln = config["layer_norm_eps"] if self.mistake == "abstractor_eps" else 1e-5
        ffn = 1e-5 if self.mistake == "ffn_eps" else config["layer_norm_eps"]
        root = "model.visual_abstractor"
        x = self.state[f"{root}.query_embeds"][0]
        for i in range(config["num_hidden_layers"]):
            layer = f"{root}.encoder.layers.{i}.crossattention"
            q_pos, k_pos = self.tables(f"{layer}.attention")
            k_pos = k_pos[1:] if self.mistake == "class_token_dropped" else k_pos
            h = self.layer_norm(x, f"{layer}.norm1", ln)
            e = self.layer_norm(vision, f"{layer}.normk", ln)
            context, positions = np.concatenate([h, e]), np.concatenate([q_pos, k_pos])
            if self.mistake == "no_self_keys":
                context, positions = e, k_pos
            q = self.linear(h + q_pos, f"{layer}.attention.query")
            k = self.linear(context + positions, f"{layer}.attention.key")
            into_v = context + positions if self.mistake == "position_in_value" else context
            v = self.linear(into_v, f"{layer}.attention.value")
            mixed = self.attend(q, k, v, config["num_attention_heads"], lambda i, j: True)
            residual = x if self.mistake == "raw_residual" else h
            y = residual + self.linear(mixed, f"{layer}.output.out_proj")
            z = self.layer_norm(y, f"{layer}.output.norm2", ln)
            gate = self.linear(z, f"{layer}.output.mlp.w1")
            inner = gate * sigmoid(gate) * self.linear(z, f"{layer}.output.mlp.w3")
            inner = self.layer_norm(inner, f"{layer}.output.mlp.ffn_ln", ffn)
            x = y + self.linear(inner, f"{layer}.output.mlp.w2")
        image = self.linear(x, f"{root}.visual_fc")
        eos = self.state[f"{root}.vit_eos"][0]
        if self.mistake == "eos_missing":
            return image
        return np.concatenate([eos, image] if self.mistake == "eos_first" else [image, eos])

    def tables(self, name: str) -> tuple[Array, Array]:
        """The positions of queries and of vision tokens, as stored (or wrongly recomputed)."""
        q_pos, k_pos = self.state[f"{name}.q_pos_embed"], self.state[f"{name}.k_pos_embed"]
        if not self.mistake.startswith("tables_"):
            return q_pos, k_pos
        side, width = math.isqrt(len(k_pos) - 1), q_pos.shape[1]

        def code(size: int, p: int) -> list[float]:
            angle = [p * 10000 ** (-j / (size / 2)) for j in range(size // 2)]
            if self.mistake == "tables_interleaved":
                return [f(a) for a in angle for f in (math.sin, math.cos)]
            return [math.sin(a) for a in angle] + [math.cos(a) for a in angle]

        rows = [[0.0] * width]
        for y in range(side):
            for x in range(side):
                first, second = (y, x) if self.mistake == "tables_y_first" else (x, y)
                rows.append(code(width // 2, first) + code(width // 2, second))
        return np.array([code(width, p) for p in range(len(q_pos))]), np.array(rows)

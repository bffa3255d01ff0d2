"""Q-Align by hand: NumPy, float64, one image, one head, one token at a time.

Written from the architecture's description alone and sharing no code with ``models/``. Every
mistake that is easy to make here can be made on purpose, by name, to see that it would be noticed.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.support.qalign_reference_vision import Array, Vision, sigmoid

MISTAKES = {
    "black_padding": "pad with black instead of the mean colour",
    "ceil_padding": "put the odd pixel of padding above or to the left",
    "corner_padding": "paste the image into the corner",
    "stretched": "resize without padding",
    "bilinear": "resize bilinearly",
    "imagenet_mean": "normalise with ImageNet's mean and deviation",
    "blue_first": "read BGR",
    "qkv_thirds": "take query_key_value as all Q, all K, all V",
    "exact_gelu": "use the config's gelu for quick_gelu",
    "class_token_dropped": "give the abstractor the patches alone",
    "penultimate_layer": "take the features of the last layer but one",
    "norm_class_only": "apply post_layernorm to the class token alone",
    "vision_eps": "use PyTorch's epsilon in the vision tower",
    "raw_residual": "add the attention to x instead of its norm",
    "abstractor_eps": "use the config's epsilon in norm1, normk, norm2",
    "ffn_eps": "use PyTorch's epsilon in ffn_ln",
    "position_in_value": "add the positions to V too",
    "no_self_keys": "let the queries attend to the vision tokens alone",
    "tables_recomputed": "compute the position tables instead of reading them",
    "tables_y_first": "put the row's code before the column's",
    "tables_interleaved": "interleave sines and cosines",
    "eos_first": "put the end-of-image token before the queries",
    "eos_missing": "leave the end-of-image token out",
    "eos_as_text": "route the end-of-image token as text",
    "ending_as_vision": "route the text after the image as vision",
    "ways_swapped": "take way 0 for vision",
    "norms_one_way": "normalise every token as text",
    "values_one_way": "use the text's value weights for all",
    "image_not_causal": "let the image's tokens see each other both ways",
    "rope_interleaved": "rotate neighbouring pairs instead of halves",
    "rope_restart": "count positions anew after the image",
    "rms_eps": "use LLaMA's class default for rms_norm_eps",
    "second_bos": "keep the second half's beginning-of-sequence token",
    "no_dummy_space": "lose the dummy space after the image",
    "swapped_words": "ask for the image of the quality",
}

BEFORE = (1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278, 11029, 310, 445, 1967, 29973, 13)
AFTER = (29871, 13, 22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338)
LEVEL_ROWS = (15129, 1781, 6534, 6460, 4319)


class Reference(Vision):
    """The whole model: what the vision half gives is read by the language model."""

    def level_logits(
        self,
        image: NDArray[np.uint8],
        before: Sequence[int] = BEFORE,
        after: Sequence[int] = AFTER,
    ) -> Array:
        """Logits of the five levels for one RGB image [H, W, 3]."""
        if self.mistake == "second_bos":
            after = (1, *after)
        if self.mistake == "no_dummy_space":
            after = after[1:]
        if self.mistake == "swapped_words":
            exchange = {11029: 1967, 1967: 11029}
            after = [exchange.get(token, token) for token in after]
        seen = self.abstract(self.see(self.pixels(image)))
        return self.read(seen, before, after)

    def read(self, image: Array, before: Sequence[int], after: Sequence[int]) -> Array:
        """Logits of the five levels after the last token."""
        config = self.config
        embed = self.state["model.embed_tokens.weight"]
        x = np.concatenate([embed[list(before)], image, embed[list(after)]])
        start, stop, total = len(before), len(before) + len(image), len(x)
        way = [1 if start <= i < stop else 0 for i in range(total)]
        if self.mistake == "eos_as_text":
            way[stop - 1] = 0
        if self.mistake == "ending_as_vision":
            way[stop:] = [1] * (total - stop)
        if self.mistake == "ways_swapped":
            way = [1 - w for w in way]
        position = list(range(total))
        if self.mistake == "rope_restart":
            position = [*range(stop), *range(total - stop)]

        def allowed(i: int, j: int) -> bool:
            both_in_image = start <= i < stop and start <= j < stop
            return j <= i or (self.mistake == "image_not_causal" and both_in_image)

        for i in range(config["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            h = self.rms_norm(x, f"{layer}.input_layernorm", way)
            q = self.rotate(self.linear(h, f"{layer}.self_attn.q_proj"), position)
            k = self.rotate(self.by_way(h, f"{layer}.self_attn.k_proj", way), position)
            value_way = [0] * total if self.mistake == "values_one_way" else way
            v = self.by_way(h, f"{layer}.self_attn.v_proj", value_way)
            groups = config["num_attention_heads"] // config["num_key_value_heads"]
            k, v = (self.repeat_heads(t, groups) for t in (k, v))
            mixed = self.attend(q, k, v, config["num_attention_heads"], allowed)
            x = x + self.linear(mixed, f"{layer}.self_attn.o_proj")
            h = self.rms_norm(x, f"{layer}.post_attention_layernorm", way)
            gate = self.linear(h, f"{layer}.mlp.gate_proj")
            inner = gate * sigmoid(gate) * self.linear(h, f"{layer}.mlp.up_proj")
            x = x + self.linear(inner, f"{layer}.mlp.down_proj")
        last = self.rms_norm(x, "model.norm", None)[-1]
        return np.array([self.state["lm_head.weight"][row] @ last for row in LEVEL_ROWS])

    def by_way(self, x: Array, name: str, way: Sequence[int]) -> Array:
        """Project every token with the weights of its modality."""
        rows = [self.linear(row, f"{name}.multiway.{w}") for row, w in zip(x, way, strict=True)]
        return np.stack(rows)

    def rms_norm(self, x: Array, name: str, way: Sequence[int] | None) -> Array:
        """Divide every token by its root mean square and scale it for its modality."""
        eps = 1e-6 if self.mistake == "rms_eps" else self.config["rms_norm_eps"]
        if way is not None and self.mistake == "norms_one_way":
            way = [0] * len(x)
        rows = []
        for i, row in enumerate(x):
            weight = f"{name}.weight" if way is None else f"{name}.multiway.{way[i]}.weight"
            rows.append(row / math.sqrt((row * row).mean() + eps) * self.state[weight])
        return np.stack(rows)

    def rotate(self, x: Array, position: Sequence[int]) -> Array:
        """Rotary positions: pair (c, c + d/2) of each head turns by position * theta^(-2c/d)."""
        d = self.config["hidden_size"] // self.config["num_attention_heads"]
        theta = self.config.get("rope_theta", 10000.0)
        out = np.empty_like(x)
        for i, p in enumerate(position):
            for head in range(0, x.shape[1], d):
                for c in range(d // 2):
                    a, b = head + c, head + c + d // 2
                    if self.mistake == "rope_interleaved":
                        a, b = head + 2 * c, head + 2 * c + 1
                    angle = p * theta ** (-2 * c / d)
                    out[i, a] = x[i, a] * math.cos(angle) - x[i, b] * math.sin(angle)
                    out[i, b] = x[i, b] * math.cos(angle) + x[i, a] * math.sin(angle)
        return out

    def repeat_heads(self, x: Array, groups: int) -> Array:
        """Give every key-value head to ``groups`` neighbouring query heads."""
        d = self.config["hidden_size"] // self.config["num_attention_heads"]
        heads = [x[:, h : h + d] for h in range(0, x.shape[1], d) for _ in range(groups)]
        return np.concatenate(heads, axis=1)

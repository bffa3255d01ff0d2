"""Q-Align as one network: pixels -> image tokens -> logits of the five levels. No generation.

``QAlignNetwork.state_dict()`` has the published keys and shapes, 862 of them at 7B. The three
shortcuts leave out work that cannot change the result; each can be switched off to measure it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from models.qalign.language import (
    NO_VISION,
    KeysValues,
    LanguageConfig,
    LanguageLayer,
    Rotary,
    Span,
)
from models.qalign.prompts import LEVELS, Prompt
from models.qalign.vision import AbstractorConfig, VisionConfig, VisionTower, VisualAbstractor

T = TypeVar("T")
# What config.json may not ask for: {field: the only value that the published weights need}.
FIXED: Mapping[str, object] = {
    "model_type": "mplug_owl2",
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class QAlignConfig:
    """The sizes of the three parts, as config.json gives them."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    abstractor: AbstractorConfig = field(default_factory=AbstractorConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def __post_init__(self) -> None:
        if self.abstractor.encoder_hidden_size != self.vision.hidden_size:
            raise ValueError(
                f"visual_abstractor.encoder_hidden_size={self.abstractor.encoder_hidden_size} must "
                f"equal visual_model.hidden_size={self.vision.hidden_size}"
            )
        if 1 + self.abstractor.grid_size**2 != self.vision.tokens:
            raise ValueError(
                f"visual_abstractor.grid_size={self.abstractor.grid_size} must equal "
                f"visual_model.image_size / patch_size = "
                f"{self.vision.image_size // self.vision.patch_size}"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read the content of config.json; keys that do not concern the network are ignored.

        Raises:
            ValueError: a variant this network does not implement, or sizes that do not fit.
        """
        for name, only in FIXED.items():
            if values.get(name, only) != only:
                raise ValueError(
                    f"config.json: {name}={values[name]!r}; only {only!r} is supported"
                )
        language = {"num_key_value_heads": values.get("num_attention_heads"), **values}
        rope = values.get("rope_parameters") or {}  # where transformers 5 keeps it
        language.setdefault("rope_theta", rope.get("rope_theta"))
        visual = values.get("visual_config") or {}
        return cls(
            vision=_pick(VisionConfig, visual.get("visual_model") or {}),
            abstractor=_pick(AbstractorConfig, visual.get("visual_abstractor") or {}),
            language=_pick(LanguageConfig, language),
        )


def _pick(part: type[T], values: Mapping[str, Any]) -> T:
    """Build a part's configuration from the fields it has; absent or null ones keep the default."""
    names = [field.name for field in dataclasses.fields(part)]  # type: ignore[arg-type]  # T is one
    return part(**{name: values[name] for name in names if values.get(name) is not None})


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortcuts:
    """Work left out without changing the result beyond float noise."""

    shared_prefix: bool = True  # text before the image is causal, so the same for every image
    last_row: bool = True  # the last layer answers for the last token only
    five_logits: bool = True  # five rows of the head, in float32, instead of the vocabulary's


class Backbone(nn.Module):
    """What the checkpoint calls ``model``: embeddings, layers, the final norm, and the eye."""

    def __init__(self, config: QAlignConfig) -> None:
        super().__init__()
        language = config.language
        self.embed_tokens = nn.Embedding(language.vocab_size, language.hidden_size)
        self.layers = nn.ModuleList(
            LanguageLayer(language) for _ in range(language.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(language.hidden_size, eps=language.rms_norm_eps)
        self.vision_model = VisionTower(config.vision)
        self.visual_abstractor = VisualAbstractor(config.abstractor, language.hidden_size)


class QAlignNetwork(nn.Module):
    """The whole network; build it under ``torch.device("meta")`` and load a checkpoint into it."""

    def __init__(self, config: QAlignConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        language = config.language
        self.lm_head = nn.Linear(language.hidden_size, language.vocab_size, bias=False)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Encode images once for any number of prompts.

        Args:
            pixels: [B, 3, image, image], normalised as CLIP's, in the weights' dtype.

        Returns:
            [B, Q + 1, L].
        """
        tokens: Tensor = self.model.visual_abstractor(self.model.vision_model(pixels))
        return tokens

    def prefix(self, prompt: Prompt) -> list[KeysValues]:
        """Compute every layer's keys and values of the text before the image."""
        x = self._embed(prompt.before)
        rotary = Rotary.at(self.config.language, 0, x.shape[1], like=x)
        prefix = []
        for layer in self.model.layers:
            x, own = layer(x, NO_VISION, rotary, None, last_row=False)
            prefix.append(own)
        return prefix

    def level_logits(
        self,
        image: Tensor,
        prompt: Prompt,
        prefix: Sequence[KeysValues] | None,
        shortcuts: Shortcuts,
    ) -> Tensor:
        """Ask one question about each image.

        Args:
            image: ``image_tokens`` of the images, [B, Q + 1, L].
            prompt: the question.
            prefix: ``self.prefix(prompt)``, or None to read the text before the image again.
            shortcuts: work to leave out.

        Returns:
            Logits of the levels, excellent first, float32 [B, 5].
        """
        before = () if prefix else prompt.before
        opening, ending = (
            self._embed(ids).expand(len(image), -1, -1) for ids in (before, prompt.after)
        )
        x = torch.cat([opening, image, ending], dim=1)
        vision = Span(len(before), len(before) + image.shape[1])
        first = len(prompt.before) - len(before)
        rotary = Rotary.at(self.config.language, first, x.shape[1], like=x)
        layers = self.model.layers
        for number, layer in enumerate(layers, start=1):
            own_prefix = prefix[number - 1] if prefix else None
            last_row = shortcuts.last_row and number == len(layers)
            x, _ = layer(x, vision, rotary, own_prefix, last_row)
        return self._levels(x, shortcuts.five_logits)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        """Look up token ids; returns [1, len(ids), L]."""
        weight = self.model.embed_tokens.weight
        return F.embedding(torch.tensor([ids], dtype=torch.long, device=weight.device), weight)

    def _levels(self, x: Tensor, five_logits: bool) -> Tensor:
        """Map tokens [B, S, L] to the last one's level logits [B, 5]."""
        rows = torch.tensor(list(LEVELS.values()), device=x.device)
        if not five_logits:
            logits: Tensor = self.lm_head(self.model.norm(x))
            return logits[:, -1, rows].float()
        last = self.model.norm(x[:, -1]).float()
        return F.linear(last, self.lm_head.weight[rows].float())


def flops_per_image(
    config: QAlignConfig, prompts: Sequence[Prompt], shortcuts: Shortcuts = Shortcuts()
) -> int:
    """Count the floating-point operations of one image, 2 per multiply-add of a matrix product.

    Counted on meta tensors, so without weights; attention in full, not halved for being causal.
    The shared prefix is not counted: it is computed once for all images.
    """
    size = config.vision.image_size
    with torch.device("meta"):
        network = QAlignNetwork(config).requires_grad_(False)
        pixels = torch.empty(1, 3, size, size)
    prefixes = [network.prefix(p) if shortcuts.shared_prefix else None for p in prompts]
    with FlopCounterMode(display=False) as counter:
        image = network.image_tokens(pixels)
        for prompt, prefix in zip(prompts, prefixes, strict=True):
            network.level_logits(image, prompt, prefix, shortcuts)
    total: int = counter.get_total_flops()
    return total

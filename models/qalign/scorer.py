"""Q-Align: the image quality score that defines the paper's data set (1 to 5, kept from 3.5).

    scorer = QAlign.load("q-future/one-align", device="cuda")
    for score in scorer.score(images):
        score.value, score.logits

One forward pass per image and prompt, no generation, on current transformers and without remote
code. 8-bit and 4-bit loading is left out: transformers offers it only through ``from_pretrained``
with accelerate and bitsandbytes, which are not in the stack, and it changes the scores.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.qalign.checkpoint import Checkpoint
from models.qalign.images import Pixels, prepare, to_clip_range
from models.qalign.language import KeysValues
from models.qalign.network import QAlignNetwork, Shortcuts
from models.qalign.prompts import LEVEL_VALUES, find_prompt

Picture = Pixels | Image.Image
Preparing = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Score(NamedTuple):
    """What Q-Align says of an image."""

    value: float  # 1 (bad) to 5 (excellent); a float32 number
    logits: tuple[float, ...]  # of excellent, good, fair, poor, bad


class QAlign:
    """A no-reference quality metric with its weights loaded.

    Attributes:
        prompt: name of the question that ``score`` asks.
        digest: identity of the weights alone; see ``identity`` for what else a score depends on.
        batch_size: images per forward pass.
        shortcuts: work left out without changing the result; on unless measured.
    """

    def __init__(
        self,
        network: QAlignNetwork,
        prompt: str = "quality",
        batch_size: int = 8,
        model: str = "",
        digest: str = "",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least one image per batch")
        find_prompt(prompt)
        self.network = network
        self.prompt = prompt
        self.batch_size = batch_size
        self.model = model
        self.digest = digest
        self.shortcuts = Shortcuts()
        self._prefixes: dict[str, list[KeysValues]] = {}

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | None = None,
        prompt: str = "quality",
        batch_size: int = 8,
        revision: str | None = None,
    ) -> Self:
        """Load the published weights.

        Args:
            source: a folder with the published files, or a hub id such as q-future/one-align.
            device: where to score.
            dtype: "float16" (the documented precision and the default on CUDA), "bfloat16" (what
                the files hold; coarser), or "float32" (the default elsewhere).
            prompt: name of the question; see `models.qalign.prompts.PROMPTS`.
            batch_size: images per forward pass.
            revision: of a hub id: branch, tag or commit.

        Raises:
            ValueError: an unknown dtype or prompt; or BadCheckpoint or WrongTokenizer, kinds of it.
            NotEnoughMemory: the device is too small; nothing was loaded.
        """
        device = torch.device(device)
        dtype = dtype or ("float16" if device.type == "cuda" else "float32")
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
        find_prompt(prompt)
        checkpoint = Checkpoint.open(source, revision)
        network = checkpoint.load(device, DTYPES[dtype], batch_size)
        folder = Path(source).expanduser()
        model = folder.resolve().name if folder.is_dir() else str(source)
        return cls(network, prompt, batch_size, model, checkpoint.digest)

    @property
    def identity(self) -> dict[str, str]:
        """Say what a score depends on: model, digest of its weights, prompt, dtype."""
        dtype = str(self._weight.dtype).removeprefix("torch.")
        return {"model": self.model, "digest": self.digest, "prompt": self.prompt, "dtype": dtype}

    def score(self, images: Sequence[Picture]) -> list[Score]:
        """Score RGB uint8 [H, W, 3] images of any sizes (or PIL images); an empty list gives one.

        Raises:
            ValueError: an image of another kind; decode it first.
        """
        return [scores[0] for scores in self.stream(images, (self.prompt,))]

    def stream(
        self, images: Iterable[Picture], prompts: Sequence[str], preparing: Preparing = map
    ) -> Iterator[tuple[Score, ...]]:
        """Score images as they come, for several prompts from one vision pass.

        The last bits of a score may depend on the other images of its batch.

        Args:
            images: as for `score`.
            prompts: names of questions.
            preparing: applies a function to every image and yields the results in order: the
                built-in `map`, or one that works ahead in threads while the device computes.

        Yields:
            Per image, in order, one score per prompt.
        """
        return self.stream_groups((images,), prompts, preparing)

    def stream_groups(
        self,
        groups: Iterable[Iterable[Picture]],
        prompts: Sequence[str],
        preparing: Preparing = map,
    ) -> Iterator[tuple[Score, ...]]:
        """Score groups of images, of which no batch holds images of two.

        So the bits of a group's scores depend on the group and on ``batch_size``, and not on what
        is scored before or after it. One batch's scores are read while the next batch is on the
        device.

        Args:
            groups: images as for `score`.
            prompts: names of questions.
            preparing: as for `stream`.

        Yields:
            Per image, in order, one score per prompt.
        """
        waiting: Tensor | None = None
        for batch in self._batches(groups, preparing):
            logits = self.logits(batch, prompts)
            if waiting is not None:
                yield from _scores(waiting)
            waiting = logits
        if waiting is not None:
            yield from _scores(waiting)

    @property
    def _weight(self) -> Tensor:
        return self.network.lm_head.weight

    def _batches(
        self, groups: Iterable[Iterable[Picture]], preparing: Preparing
    ) -> Iterator[Tensor]:
        """Yield uint8 [B, image, image, 3] on the device."""
        size = self.network.config.vision.image_size
        numbered = ((number, image) for number, group in enumerate(groups) for image in group)
        for _, group in groupby(preparing(partial(_prepared, size=size), numbered), itemgetter(0)):
            while pixels := [image for _, image in islice(group, self.batch_size)]:
                batch = torch.from_numpy(np.stack(pixels))
                if self._weight.is_cuda:
                    batch = batch.pin_memory()  # or the copy waits for the device
                yield batch.to(self._weight.device, non_blocking=True)

    @torch.inference_mode()
    def logits(self, batch: Tensor, prompts: Sequence[str]) -> Tensor:
        """Run the network on prepared images, one vision pass for all prompts.

        Args:
            batch: uint8 [B, image, image, 3] on the network's device.
            prompts: names of questions.

        Returns:
            Level logits, float32 [B, len(prompts), 5], on the device.
        """
        pixels = to_clip_range(batch).to(self._weight.dtype)
        image = self.network.image_tokens(pixels)
        return torch.stack([self._ask(image, name) for name in prompts], dim=1)

    def _ask(self, image: Tensor, name: str) -> Tensor:
        prompt = find_prompt(name)
        if not self.shortcuts.shared_prefix:
            return self.network.level_logits(image, prompt, None, self.shortcuts)
        if name not in self._prefixes:
            self._prefixes[name] = self.network.prefix(prompt)
        return self.network.level_logits(image, prompt, self._prefixes[name], self.shortcuts)


def _prepared(numbered: tuple[int, Picture], size: int) -> tuple[int, Pixels]:
    number, image = numbered
    return number, prepare(image, size)


def _scores(logits: Tensor) -> Iterator[tuple[Score, ...]]:
    """Turn level logits [B, prompts, 5] into scores: the mean level value under their softmax."""
    levels = torch.tensor(LEVEL_VALUES, device=logits.device)
    values = (logits.softmax(dim=-1) * levels).sum(dim=-1)
    for row in torch.cat([values[..., None], logits], dim=-1).tolist():
        yield tuple(Score(value, tuple(rest)) for value, *rest in row)

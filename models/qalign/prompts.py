"""Q-Align's questions as LLaMA-2 token ids, and the check that a tokenizer agrees with them.

The ids are literal: transformers' tokenizers change them silently from version to version. Each
prompt is split at the image; a half is tokenized alone, so each begins with the vocabulary's dummy
space, and the first alone with the beginning-of-sequence token, 1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

BOS: Final = 1
LEVELS: Final = {"excellent": 15129, "good": 1781, "fair": 6534, "poor": 6460, "bad": 4319}
LEVEL_VALUES: Final = (5.0, 4.0, 3.0, 2.0, 1.0)  # of the levels, in their order


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A question around an image, as text and as token ids."""

    text: tuple[str, str]  # before and after the image
    before: tuple[int, ...]  # ids, BOS included
    after: tuple[int, ...]  # ids; the levels follow

    @property
    def tokens(self) -> int:
        """Count the text tokens."""
        return len(self.before) + len(self.after)


_QUALITY = (11029,)
_AESTHETICS = (263, 342, 9188, 1199)
_IMAGE = (1967,)
_USER = (BOS, 3148, 1001, 29901)  # "USER:"
_ASSISTANT = (9047, 13566, 29901)  # "ISTANT:"


def _natural(task: str, ids: tuple[int, ...]) -> Prompt:
    """Ask as the hub's ``score()`` and the scorer classes do: "The quality of the image is"."""
    return Prompt(
        text=(
            f"USER: How would you rate the {task} of this image?\n",
            f"\nASSISTANT: The {task} of the image is",
        ),
        before=(*_USER, 1128, 723, 366, 6554, 278, *ids, 310, 445, *_IMAGE, 29973, 13),
        after=(29871, 13, 22933, *_ASSISTANT, 450, *ids, 310, 278, *_IMAGE, 338),
    )


def _swapped(task: str, ids: tuple[int, ...]) -> Prompt:
    """Ask as ``score()`` of the GitHub code does: "The image of the quality is"."""
    natural = _natural(task, ids)
    return Prompt(
        text=(natural.text[0], f"\nASSISTANT: The image of the {task} is"),
        before=natural.before,
        after=(29871, 13, 22933, *_ASSISTANT, 450, *_IMAGE, 310, 278, *ids, 338),
    )


PROMPTS: Final = {
    "quality": _natural("quality", _QUALITY),
    "aesthetics": _natural("aesthetics", _AESTHETICS),
    "quality-swapped": _swapped("quality", _QUALITY),
    "aesthetics-swapped": _swapped("aesthetics", _AESTHETICS),
    # the scripts behind the published benchmark tables: IQA, and AVA
    "quality-eval": Prompt(
        text=(
            "USER: How would you rate the quality of this image?\n",
            " ASSISTANT: The quality of the image is",
        ),
        before=_natural("quality", _QUALITY).before,
        after=(29871, 319, 1799, *_ASSISTANT, 450, *_QUALITY, 310, 278, *_IMAGE, 338),
    ),
    "aesthetics-eval": Prompt(
        text=(
            "USER: ",
            "How would you rate the aesthetics of this image? "
            "ASSISTANT: The aesthetics of the image is",
        ),
        before=(*_USER, 29871),
        after=(
            *(1128, 723, 366, 6554, 278, *_AESTHETICS, 310, 445, *_IMAGE, 29973),
            *(319, 1799, *_ASSISTANT, 450, *_AESTHETICS, 310, 278, *_IMAGE, 338),
        ),
    ),
}


class WrongTokenizer(ValueError):  # noqa: N818  (reads as what it says)
    """The folder's vocabulary is not the one the prompts' ids belong to."""


def find_prompt(name: str) -> Prompt:
    """Look up a prompt by name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompt {name!r}: choose one of {', '.join(PROMPTS)}")
    return PROMPTS[name]


def check_vocabulary(path: Path) -> None:
    """Tokenize every prompt and level with a sentencepiece model and compare with the literal ids.

    Raises:
        WrongTokenizer: the file is unreadable, or gives other ids than expected; says which.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        encode = SentencePieceProcessor(model_file=str(path)).encode
    except (OSError, RuntimeError) as error:
        raise WrongTokenizer(f"{path}: not a sentencepiece model ({error})") from error
    for name, prompt in PROMPTS.items():
        halves = (BOS, *encode(prompt.text[0])), tuple(encode(prompt.text[1]))
        _compare(path, f"prompt {name!r}", halves, (prompt.before, prompt.after))
    for word, token in LEVELS.items():
        _compare(path, f"level {word!r}", encode(word), [token])


def _compare(path: Path, what: str, got: object, expected: object) -> None:
    if got != expected:
        raise WrongTokenizer(
            f"{path}: {what} becomes {got}, expected {expected}; this is not the LLaMA-2 "
            "vocabulary that Q-Align was trained with; take tokenizer.model from q-future/one-align"
        )

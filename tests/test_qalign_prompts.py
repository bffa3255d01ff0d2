"""The literal token ids are LLaMA-2's, and another vocabulary is refused."""

from pathlib import Path

import pytest

from models.qalign.prompts import LEVELS, PROMPTS, WrongTokenizer, check_vocabulary
from models.qalign.scorer import QAlign
from tests.support.qalign_checkpoint import write_checkpoint
from tests.support.qalign_vocabulary import PIECES, write_vocabulary

NATURAL = (
    "1 3148 1001 29901 1128 723 366 6554 278 11029 310 445 1967 29973 13 | "
    "29871 13 22933 9047 13566 29901 450 11029 310 278 1967 338"
)


def test_quality_prompt_is_the_published_one() -> None:
    """Prompt A, number by number."""
    before, after = (tuple(map(int, half.split())) for half in NATURAL.split("|"))

    assert (PROMPTS["quality"].before, PROMPTS["quality"].after) == (before, after)


@pytest.mark.parametrize(("name", "length"), [("quality", 92), ("aesthetics", 98)])
def test_lengths_with_the_image(name: str, length: int) -> None:
    """Text and 65 image tokens make the published sequence lengths."""
    prompt = PROMPTS[name]

    assert len(prompt.before) + 65 + len(prompt.after) == length


def test_prompts_differ() -> None:
    """No name stands for another's question."""
    assert len({(prompt.before, prompt.after) for prompt in PROMPTS.values()}) == len(PROMPTS)


def test_swapped_order_ends_as_the_github_code_asks() -> None:
    """The swapped prompt asks for "The image of the quality is"."""
    assert PROMPTS["quality-swapped"].after[-6:] == (450, 1967, 310, 278, 11029, 338)


def test_prompts_and_levels_agree_with_the_vocabulary(tmp_path: Path) -> None:
    """Sentencepiece, given the pieces at LLaMA-2's places, makes exactly the literal ids."""
    check_vocabulary(write_vocabulary(tmp_path / "tokenizer.model"))


@pytest.mark.parametrize(
    ("piece", "what"), [("▁quality", "prompt 'quality'"), ("▁fair", "level 'fair'")]
)
def test_another_vocabulary_is_refused(tmp_path: Path, piece: str, what: str) -> None:
    """One moved piece is found and named before any weight is read."""
    folder = write_checkpoint(tmp_path / "tiny")
    write_vocabulary(folder / "tokenizer.model", PIECES | {piece: 31000})

    with pytest.raises(WrongTokenizer, match=f"tokenizer.model: {what} becomes .*31000.*expected"):
        QAlign.load(folder)


def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path) -> None:
    """A damaged tokenizer file is named."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")

    with pytest.raises(WrongTokenizer, match=r"tokenizer\.model: not a sentencepiece model"):
        check_vocabulary(path)


def test_levels_are_single_tokens_of_the_vocabulary() -> None:
    """Five levels, best first, five ids."""
    assert list(LEVELS) == ["excellent", "good", "fair", "poor", "bad"]
    assert len(set(LEVELS.values())) == 5

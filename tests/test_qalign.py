"""Q-Align agrees with a slow implementation of its description, and so do its shortcuts."""

import itertools
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from infra.ahead import map_ahead
from models.qalign import scorer as qalign
from models.qalign.checkpoint import build
from models.qalign.network import QAlignConfig, Shortcuts, flops_per_image
from models.qalign.prompts import PROMPTS
from models.qalign.scorer import QAlign
from tests.conftest import PATIENCE
from tests.support.qalign_checkpoint import SIZE_7B, TINY, layout, random_state, write_checkpoint
from tests.support.qalign_reference import MISTAKES, Reference

FIXTURES = Path(__file__).parent / "fixtures"
TOLERANCE = 1e-5  # of a logit, float32 against float64
NONE = Shortcuts(shared_prefix=False, last_row=False, five_logits=False)


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise; the odd difference of the default sides makes the padding's floor visible."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PHOTOS = [photo(45, 62), photo(62, 45, 1), photo(56, 56, 2), photo(7, 90, 3), photo(130, 99, 4)]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The tiny weights, in bfloat16 as the published ones."""
    return random_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    """The tiny checkpoint, in the published layout."""
    return write_checkpoint(tmp_path_factory.mktemp("qalign") / "tiny", state)


@pytest.fixture(scope="module")
def scorer(folder: Path) -> QAlign:
    """The tiny scorer, float32 on the CPU."""
    return QAlign.load(folder, batch_size=3)


def logits(scorer: QAlign, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The five logits of one image."""
    return np.array(scorer.score([image])[0].logits)


@pytest.mark.parametrize("number", range(len(PHOTOS)))
def test_logits_equal_the_reference(scorer: QAlign, state: dict[str, Tensor], number: int) -> None:
    """Every step is as described: an independent float64 model gives the same five logits."""
    expected = Reference(state, TINY).level_logits(PHOTOS[number])

    assert np.abs(logits(scorer, PHOTOS[number]) - expected).max() < TOLERANCE


def test_published_geometry_equals_the_reference(tmp_path: Path) -> None:
    """With 448 pixels, 1025 vision tokens and 64 queries, as at 7B, narrow layers agree as well."""
    visual = {part: dict(values) for part, values in TINY["visual_config"].items()}
    visual["visual_model"] |= {"image_size": 448, "num_hidden_layers": 1}
    visual["visual_abstractor"] |= {"grid_size": 32, "num_learnable_queries": 64}
    config = TINY | {"visual_config": visual}
    state = random_state(config)
    expected = Reference(state, config).level_logits(PHOTOS[0])

    scorer = QAlign.load(write_checkpoint(tmp_path, state, config))
    assert np.abs(logits(scorer, PHOTOS[0]) - expected).max() < TOLERANCE


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_be_noticed(scorer: QAlign, state: dict[str, Tensor], mistake: str) -> None:
    """Each known mistake moves the logits by far more than the agreement with the reference."""
    wrong = Reference(state, TINY, mistake).level_logits(PHOTOS[0])

    assert np.abs(logits(scorer, PHOTOS[0]) - wrong).max() > 1e-4


@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_equals_the_reference(
    folder: Path, state: dict[str, Tensor], name: str
) -> None:
    """The reference, given the same ids, answers each prompt the same."""
    prompt = PROMPTS[name]
    expected = Reference(state, TINY).level_logits(PHOTOS[0], prompt.before, prompt.after)

    assert np.abs(logits(QAlign.load(folder, prompt=name), PHOTOS[0]) - expected).max() < TOLERANCE


CHANGES: dict[str, dict[str, Any]] = {
    "rms_norm_eps": {"rms_norm_eps": 1e-3},
    "rope_theta": {"rope_theta": 500.0},
    "num_key_value_heads": {"num_key_value_heads": 2},
}


@pytest.mark.parametrize("change", CHANGES)
def test_config_values_are_honoured(tmp_path: Path, change: str) -> None:
    """A value that is not the default changes our logits as it does the reference's."""
    config = TINY | CHANGES[change]
    state = random_state(config)
    scorer = QAlign.load(write_checkpoint(tmp_path, state, config))
    expected = Reference(state, config).level_logits(PHOTOS[0])

    assert np.abs(logits(scorer, PHOTOS[0]) - expected).max() < TOLERANCE
    assert np.abs(expected - Reference(random_state(), TINY).level_logits(PHOTOS[0])).max() > 1e-4


def test_value_is_the_mean_level_in_float32(scorer: QAlign) -> None:
    """The score is the level values 5 to 1 averaged under the softmax of the five logits."""
    score = scorer.score(PHOTOS[:1])[0]
    p = np.exp(np.array(score.logits))
    expected = (p / p.sum()) @ np.array([5, 4, 3, 2, 1])

    assert score.value == pytest.approx(expected, abs=1e-6)
    assert score.value == float(np.float32(score.value))


@settings(max_examples=15)
@given(
    batch_size=st.integers(1, 6),
    sides=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=7),
)
def test_batches_change_nothing(
    scorer: QAlign, batch_size: int, sides: list[tuple[int, int]]
) -> None:
    """Images of any sizes score the same in any batch, and in their order."""
    images = [photo(h, w, seed) for seed, (h, w) in enumerate(sides)]
    batched = QAlign(scorer.network, batch_size=batch_size).score(images)
    alone = [QAlign(scorer.network, batch_size=1).score([image])[0] for image in images]

    torch.testing.assert_close(
        torch.tensor([score.logits for score in batched]),
        torch.tensor([score.logits for score in alone]),
        atol=1e-5,
        rtol=0,
    )


def test_no_images_give_no_scores(scorer: QAlign) -> None:
    """An empty list is a list of nothing, not an error."""
    assert scorer.score([]) == []


@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=3)), ids=str)
def test_shortcuts_change_nothing(scorer: QAlign, switches: tuple[bool, bool, bool]) -> None:
    """Prefix, last row and five logits, in any combination, leave only float noise."""
    other = QAlign(scorer.network)
    other.shortcuts = Shortcuts(**dict(zip(Shortcuts.__slots__, switches, strict=True)))
    got = [score.logits for score in other.score(PHOTOS)]

    expected = [score.logits for score in scorer.score(PHOTOS)]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=5e-6, rtol=0)


def test_two_tasks_share_one_vision_pass(
    scorer: QAlign, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quality and aesthetics together see each image once and equal the two separate scores."""
    alone = [QAlign.load(folder, prompt=name).score(PHOTOS) for name in ("quality", "aesthetics")]
    seen = []
    see = scorer.network.image_tokens
    monkeypatch.setattr(
        scorer.network, "image_tokens", lambda pixels: seen.append(len(pixels)) or see(pixels)
    )
    both = list(scorer.stream(PHOTOS, ("quality", "aesthetics")))

    assert sum(seen) == len(PHOTOS)
    for together, separate in zip(zip(*both, strict=True), alone, strict=True):
        assert [s.value for s in together] == pytest.approx([s.value for s in separate], abs=1e-5)


def test_stream_reads_no_further_than_needed(scorer: QAlign) -> None:
    """A lazy source is read at most four batches ahead of the score that is handed out."""
    read = itertools.count()
    source = (photo(8, 8) for _ in range(100) if next(read) >= 0)
    preparing = partial(map_ahead, threads=2, ahead=2 * scorer.batch_size)
    next(scorer.stream(source, ("quality",), preparing))

    assert next(read) <= 4 * scorer.batch_size


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.03), ("bfloat16", 0.3)])
def test_half_precision_scores_are_near(
    scorer: QAlign, folder: Path, dtype: str, tolerance: float
) -> None:
    """16-bit weights keep the score within the noise reported for them, and say their dtype."""
    half = QAlign.load(folder, dtype=dtype)

    assert half.identity["dtype"] == dtype
    for got, expected in zip(half.score(PHOTOS), scorer.score(PHOTOS), strict=True):
        assert got.value == pytest.approx(expected.value, abs=tolerance)


def test_identity_says_what_a_score_depends_on(folder: Path) -> None:
    """Model, weights, question and precision are in the record."""
    scorer = QAlign.load(folder, prompt="aesthetics")

    assert scorer.identity == {
        "model": "tiny",
        "digest": scorer.digest,
        "prompt": "aesthetics",
        "dtype": "float32",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda path: QAlign.load(path, prompt="beauty"),
            "prompt 'beauty': choose one of quality,",
        ),
        (lambda path: QAlign.load(path, dtype="int8"), "dtype 'int8': choose one of float16,"),
        (lambda path: QAlign.load(path, batch_size=0), "batch_size=0: at least one"),
    ],
)
def test_wrong_arguments_are_named(
    folder: Path, call: Callable[[Path], QAlign], message: str
) -> None:
    """An argument out of range is refused with what is allowed."""
    with pytest.raises(ValueError, match=message):
        call(folder)


def test_images_are_prepared_while_the_network_computes(
    scorer: QAlign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch's forward pass can wait for the second batch's resizing, and gets it."""
    prepared, computing = threading.Semaphore(0), threading.Event()

    def prepare(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        if image.shape[0] > 50:  # the second image
            assert computing.wait(timeout=PATIENCE)
            prepared.release()
        return original(image, size)

    def see(pixels: Tensor) -> Tensor:
        computing.set()
        assert prepared.acquire(timeout=PATIENCE), "the second image was not prepared meanwhile"
        prepared.release()
        return image_tokens(pixels)

    original, image_tokens = qalign.prepare, scorer.network.image_tokens
    monkeypatch.setattr(qalign, "prepare", prepare)
    monkeypatch.setattr(scorer.network, "image_tokens", see)

    pair, preparing = [photo(40, 60), photo(60, 40)], partial(map_ahead, threads=1)
    one_by_one = QAlign(scorer.network, batch_size=1)

    assert len(list(one_by_one.stream(pair, ("quality",), preparing))) == 2


def test_full_size_has_the_862_published_keys() -> None:
    """Names and shapes at 7B are those of the published state dict, none more, none less."""
    network = build(QAlignConfig())
    lines = (FIXTURES / "qalign_keys_7b.tsv").read_text().splitlines()
    published = {
        name: tuple(int(n) for n in shape.split())
        for name, shape in (line.split("\t") for line in lines)
    }

    assert {name: tuple(x.shape) for name, x in network.state_dict().items()} == published
    assert layout(SIZE_7B) == published
    assert len(published) == 862
    assert sum(parameter.numel() for parameter in network.parameters()) == 8_197_859_328


@pytest.mark.parametrize(
    ("names", "shortcuts", "gflop"),
    [
        pytest.param(("quality",), NONE, 1981.6, marks=pytest.mark.slow),
        (("quality",), Shortcuts(), 1736.7),
        pytest.param(("quality", "aesthetics"), Shortcuts(), 2750.2, marks=pytest.mark.slow),
    ],
)
def test_flops_per_image_are_the_published_count(
    names: tuple[str, ...], shortcuts: Shortcuts, gflop: float
) -> None:
    """The 7B model costs what was counted on the original, as shipped and with the shortcuts."""
    counted = flops_per_image(QAlignConfig(), [PROMPTS[name] for name in names], shortcuts)

    assert counted / 1e9 == pytest.approx(gflop, abs=0.1)

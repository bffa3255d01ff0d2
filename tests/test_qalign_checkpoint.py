"""A published folder loads exactly or says why not; nothing is loaded that was not asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.qalign import checkpoint as qalign_checkpoint
from models.qalign.checkpoint import Checkpoint, NotEnoughMemory, build, bytes_needed
from models.qalign.files import BadCheckpoint
from models.qalign.network import QAlignConfig
from models.qalign.scorer import QAlign
from tests.support.qalign_checkpoint import TINY, random_state, write_checkpoint
from tests.support.qalign_reference import Reference

IMAGE = np.random.default_rng(0).integers(0, 256, (45, 62, 3), dtype=np.uint8)
TABLE = "model.visual_abstractor.encoder.layers.0.crossattention.attention.k_pos_embed"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint: two .bin shards, index, stale keys, bfloat16."""
    return write_checkpoint(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(published, tmp_path / "tiny"))


def rewrite(folder: Path, **changes: object) -> None:
    """Change fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_weights_arrive_in_the_dtype_asked_for(folder: Path) -> None:
    """Parameters and buffers have the dtype, and outlive the mapped file they came from."""
    network = QAlign.load(folder, dtype="bfloat16").network
    for shard in folder.glob("*.bin"):
        with shard.open("r+b") as file:
            file.write(bytes(shard.stat().st_size))

    expected = random_state()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert {value.dtype for value in network.state_dict().values()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_position_tables_come_from_the_checkpoint(published: Path) -> None:
    """Stored in bfloat16, they keep its rounding; recomputing would undo it."""
    loaded = QAlign.load(published).network.state_dict()[TABLE]

    assert torch.equal(loaded, random_state()[TABLE].float())
    assert not torch.equal(loaded, random_state(dtype=torch.float32)[TABLE])


def test_absent_position_tables_are_computed_aloud(tmp_path: Path) -> None:
    """Without them the scores are those of a checkpoint that has them unrounded, with a warning."""
    full = random_state(dtype=torch.float32)
    lacking = {name: value for name, value in full.items() if not name.endswith("_pos_embed")}
    with pytest.warns(UserWarning, match="computing 4 position tables"):
        scorer = QAlign.load(write_checkpoint(tmp_path, lacking))

    expected = Reference(full, TINY).level_logits(IMAGE)
    assert np.abs(np.array(scorer.score([IMAGE])[0].logits) - expected).max() < 1e-5


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Drop one tensor."""
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: without(without(state, "lm_head.weight"), "model.norm.weight"),
            "2 missing: lm_head.weight, model.norm.weight",
        ),
        (lambda state: state | {"extra": torch.ones(1)}, "1 unexpected: extra"),
        (
            lambda state: state | {"model.norm.weight": torch.ones(31)},
            r"1 of another shape than config.json says: model.norm.weight \[31\], not \[32\]",
        ),
        (
            lambda state: without(state, "model.norm.weight") | {"norm.weight": torch.ones(32)},
            "1 missing: model.norm.weight; 1 unexpected: norm.weight",
        ),
    ],
)
def test_names_that_differ_are_listed(tmp_path: Path, change: Any, message: str) -> None:
    """Missing, unexpected and misshapen tensors are all in the message."""
    with pytest.raises(BadCheckpoint, match=message):
        QAlign.load(write_checkpoint(tmp_path, change(random_state())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "align"}, "model_type='align'; only 'mplug_owl2'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling=.*only None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; only 'silu'"),
        ({"num_attention_heads": 5}, "5 attention heads do not divide hidden_size=32"),
        ({"vocab_size": 100}, "vocab_size=100, but the prompts use token 29973"),
    ],
)
def test_another_model_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    """A configuration that this network does not implement is not loaded as if it did."""
    rewrite(folder, **change)

    with pytest.raises(BadCheckpoint, match=message):
        QAlign.load(folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("visual_abstractor", {"grid_size": 5}, "grid_size=5 must equal .* = 4"),
        ("visual_abstractor", {"encoder_hidden_size": 32}, "hidden_size=24 must equal"),
        ("visual_model", {"image_size": 50}, "image_size=50 is not a multiple of patch_size=14"),
        ("visual_model", {"hidden_size": 48}, "must equal visual_model.hidden_size=48"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    folder: Path, part: str, change: dict[str, int], message: str
) -> None:
    """Sizes that contradict each other are named with both values."""
    visual = json.loads(json.dumps(TINY["visual_config"]))
    visual[part] |= change
    rewrite(folder, visual_config=visual)

    with pytest.raises(BadCheckpoint, match=message):
        QAlign.load(folder)


def test_a_damaged_config_or_index_is_named(folder: Path) -> None:
    """Half a JSON file is a damaged download, not a crash."""
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text()[:50])
    with pytest.raises(BadCheckpoint, match=r"index\.json: not a weights index"):
        QAlign.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadCheckpoint, match="Expecting property name"):
        QAlign.load(folder)


def test_defaults_are_the_published_model() -> None:
    """A config.json without visual_config means the original class's defaults: the 7B model."""
    assert QAlignConfig.from_json({"model_type": "mplug_owl2"}) == QAlignConfig()


def test_transformers_5_keeps_theta_elsewhere() -> None:
    """A configuration saved again by transformers 5 keeps its rotary base."""
    config = QAlignConfig.from_json(
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    )

    assert config.language.rope_theta == 5e5


def test_digest_tells_weights_and_config_apart(tmp_path: Path, published: Path) -> None:
    """One changed tensor, another dtype or another epsilon is another digest; a copy is not."""
    state = random_state()
    name = "model.layers.1.self_attn.v_proj.multiway.1.weight"
    folders = [
        published,
        write_checkpoint(tmp_path / "a", state | {name: state[name] * 1.01}),
        write_checkpoint(tmp_path / "b", random_state(dtype=torch.float32)),
        write_checkpoint(tmp_path / "c", state, TINY | {"rms_norm_eps": 1e-6}),
    ]
    digests = [Checkpoint.open(folder).digest for folder in folders]

    assert len(set(digests)) == 4
    assert Checkpoint.open(write_checkpoint(tmp_path / "d")).digest == digests[0]


def test_memory_is_checked_before_loading(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too small a device is refused with the need in numbers, before a tensor is copied."""
    monkeypatch.setattr(qalign_checkpoint, "free_memory", lambda device: 10_000)

    with pytest.raises(
        NotEnoughMemory, match=r"needs 0.0 GB for its weights .* cpu has 0.0 GB free"
    ):
        QAlign.load(published)


def test_memory_needed_at_full_size() -> None:
    """In 16 bits the weights take 16.4 GB, as the published files do."""
    weights, batch = bytes_needed(build(QAlignConfig()), torch.float16, batch_size=8)

    assert weights / 1e9 == pytest.approx(16.4, abs=0.05)
    assert 0.1e9 < batch < 1e9

"""Our checkpoints: digests, whole folders or none, configurations from JSON."""

import dataclasses
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import checkpoint
from models.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_digest,
    save_checkpoint,
    weights_digest,
)
from models.configuration import config_from_dict


def weights() -> dict[str, Tensor]:
    """Make tensors of several dtypes and shapes: none, empty, not contiguous, channels last."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=generator)
    return {
        "conv.weight": image.to(memory_format=torch.channels_last),
        "conv.bias": torch.randn(4, 3, generator=generator).t(),
        "step": torch.tensor(7),
        "none": torch.empty(0, 3),
        "half": image[0].bfloat16(),
    }


@settings(max_examples=30)
@given(order=st.permutations(sorted(weights())))
def test_digests_ignore_order_and_memory_format(order: list[str]) -> None:
    """The digest is that of the values: neither order, nor strides, nor gradients matter."""
    state = {name: weights()[name] for name in order}
    dense = {name: value.contiguous() for name, value in state.items()}
    dense["conv.weight"].requires_grad_()

    assert weights_digest(dense) == weights_digest(state) == weights_digest(weights())


CHANGES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "dtype": lambda state: state | {"step": state["step"].int()},
    "same bytes, other dtype": lambda state: state | {"half": state["half"].view(torch.float16)},
    "shape": lambda state: state | {"conv.bias": state["conv.bias"].reshape(2, 6)},
    "empty shape": lambda state: state | {"none": torch.empty(3, 0)},
    "added": lambda state: state | {"more": torch.empty(0)},
    "swapped": lambda state: {
        {"half": "step", "step": "half"}.get(k, k): v for k, v in state.items()
    },
    "removed": lambda state: {name: value for name, value in state.items() if name != "none"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_digests_tell_names_dtypes_and_shapes_apart(change: str) -> None:
    """No change of what the weights are goes unnoticed."""
    assert weights_digest(CHANGES[change](weights())) != weights_digest(weights())


@settings(max_examples=30)
@given(data=st.data())
def test_one_bit_changes_the_digest(data: st.DataObject) -> None:
    """Any bit of any tensor is covered."""
    state = weights()
    name = data.draw(st.sampled_from([name for name, value in state.items() if value.numel()]))
    state[name] = state[name].contiguous().clone()
    content = state[name].reshape(-1).view(torch.uint8).numpy()
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    assert weights_digest(state) != weights_digest(weights())


def test_the_digest_is_pinned() -> None:
    """Caches are named by it: it may not change from version to version."""
    state = {"b": torch.arange(4, dtype=torch.int64).reshape(2, 2), "a": torch.tensor([1.0, -2.5])}

    assert weights_digest(state) == (
        "d7c2c74e07d4a508d12276ceab7bf2172c735eae9433e5f2619fb48f48aec77f"
    )


def names(folder: Path) -> list[str]:
    """List a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Weights, configuration and digest survive; the digest is readable without the weights."""
    config = {"latent_channels": 32, "widths": [1, 2], "name": "ä"}

    digest = save_checkpoint(tmp_path / "new" / "step-1", weights(), config)
    loaded, state = load_checkpoint(tmp_path / "new" / "step-1")

    assert loaded == config
    assert weights_digest(state) == weights_digest(weights()) == digest
    assert read_digest(tmp_path / "new" / "step-1") == digest
    assert names(tmp_path / "new" / "step-1") == ["config.json", "model.safetensors"]


def test_both_files_have_the_users_permissions(tmp_path: Path) -> None:
    """Weights are readable by whoever can read the configuration."""
    save_checkpoint(tmp_path, weights(), {})

    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}

    assert len(modes) == 1


@pytest.mark.parametrize("dies_at", ["model.safetensors", "config.json"])
def test_an_interrupted_save_is_never_taken_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    """Killed at either file, a save leaves the old checkpoint or one that is refused, no litter."""
    save_checkpoint(tmp_path, weights(), {"step": 1})
    old = weights_digest(weights())
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if target.name == dies_at:
            raise OSError("no space left")
        return replace(self, target)

    monkeypatch.setattr(checkpoint.Path, "replace", dying)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path, {"a": torch.ones(1)}, {"step": 2})

    assert names(tmp_path) == ["config.json", "model.safetensors"]
    if dies_at == "model.safetensors":
        assert weights_digest(load_checkpoint(tmp_path)[1]) == old
    else:
        with pytest.raises(CheckpointError, match="interrupted save"):
            load_checkpoint(tmp_path)


def test_a_configuration_that_json_cannot_hold_writes_nothing(tmp_path: Path) -> None:
    """The error comes before the first file."""
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "a", weights(), {"dtype": torch.float32})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("content", [None, "", "[]", '{"config": {}}', '{"weights_sha256": 1}'])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, content: str | None) -> None:
    """The error says which two files a checkpoint has."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"model\.safetensors and config\.json"):
        load_checkpoint(tmp_path)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    """One flipped bit in the weights, which safetensors does not notice, is noticed."""
    save_checkpoint(tmp_path, {"a": torch.arange(100.0)}, {})
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(tmp_path)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """A nested configuration."""

    width: int
    kernel: tuple[int, int] = (7, 7)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A configuration with everything that JSON changes."""

    name: str = "a"
    widths: tuple[int, ...] = (1, 2)
    pairs: tuple[tuple[str, int], ...] = ()
    levels: tuple[Level, ...] = ()
    middle: Level | None = None
    crop: tuple[int, int] | None = None


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(pairs=(("a", 1), ("b", 2)), levels=(Level(width=3), Level(width=4, kernel=(1, 3)))),
        Config(widths=(), middle=Level(width=5), crop=(3, 4)),
    ],
)
def test_configurations_survive_json(config: Config) -> None:
    """Tuples and nested dataclasses come back as what they were, and hashable."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))

    loaded = config_from_dict(Config, values)

    assert loaded == config
    assert hash(loaded) == hash(config)


def test_unknown_keys_are_refused_or_ignored_at_every_depth() -> None:
    """A misspelt key is an error that names it, unless another project wrote the file."""
    values: dict[str, Any] = {"middle": {"width": 3, "widht": 4}, "decay": 0.9}

    with pytest.raises(ValueError, match=r"Config: .*decay 0.9: Unexpected"):
        config_from_dict(Config, values)
    with pytest.raises(ValueError, match=r"middle.widht 4: Unexpected"):
        config_from_dict(Config, {"middle": values["middle"]})
    assert config_from_dict(Config, values, ignore_unknown=True) == Config(middle=Level(width=3))


def test_a_tuple_of_the_wrong_length_is_refused() -> None:
    """Three values for two are not cut."""
    with pytest.raises(ValueError, match=r"crop \[1, 2, 3\]: Tuple should have at most 2 items"):
        config_from_dict(Config, {"crop": [1, 2, 3]})

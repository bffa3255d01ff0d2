"""Weights files of others: every published form, every kind of damage, strict loading."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoint import (
    CheckpointError,
    load_strict,
    read_state_dict,
    weights_digest,
)

Wrap = Callable[[dict[str, Tensor]], object]


def weights() -> dict[str, Tensor]:
    """Make tensors of three dtypes, one of them without dimensions."""
    return {
        "conv.weight": torch.arange(6.0).reshape(2, 3),
        "conv.bias": torch.tensor([0.5, -1.5], dtype=torch.bfloat16),
        "step": torch.tensor(7),
    }


def prefixed(prefix: str) -> Wrap:
    """Return a function that puts ``prefix`` before each name."""
    return lambda state: {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Wrap] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "iters_start": 300_000, "log_step": {"a": 1}},
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params": {"raw": torch.ones(1)}, "params_ema": state},
    "ema": lambda state: {"state_dict": {"raw": torch.ones(1)}, "ema": state},
    "module": prefixed("module."),
    "state_dict of module": lambda state: {"state_dict": prefixed("module.")(state)},
    "compiled": prefixed("_orig_mod."),
    "compiled module": prefixed("module._orig_mod."),
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin"])
@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_reads_alike(tmp_path: Path, form: str, suffix: str) -> None:
    """Whatever contains them and whatever prefixes their names, the same weights come out."""
    torch.save(FORMS[form](weights()), tmp_path / f"weights{suffix}")

    read = read_state_dict(tmp_path / f"weights{suffix}")

    assert weights_digest(read) == weights_digest(weights())


def test_safetensors_and_old_archives_read_alike(tmp_path: Path) -> None:
    """Neither safetensors nor PyTorch's format before 1.6 changes a value."""
    save_file(weights(), tmp_path / "a.safetensors")
    torch.save(weights(), tmp_path / "b.pth", _use_new_zipfile_serialization=False)

    for name in ("a.safetensors", "b.pth"):
        assert weights_digest(read_state_dict(tmp_path / name)) == weights_digest(weights())


def test_one_model_of_several_is_taken_by_prefix_and_key(tmp_path: Path) -> None:
    """Lightning keeps all its models in one dict; a prefix takes one, a key its container."""
    both = prefixed("model.")(weights()) | {"mmse_model.a": torch.ones(1)}  # type: ignore[operator]  # a dict
    torch.save({"state_dict": both, "params": {"b": torch.ones(1)}}, tmp_path / "a.ckpt")

    read = read_state_dict(tmp_path / "a.ckpt", key="state_dict", prefix="model.")

    assert weights_digest(read) == weights_digest(weights())
    with pytest.raises(CheckpointError, match=r"no name begins with 'net.': model.conv"):
        read_state_dict(tmp_path / "a.ckpt", key="state_dict", prefix="net.")
    with pytest.raises(CheckpointError, match="no key 'weights'; it has state_dict, params"):
        read_state_dict(tmp_path / "a.ckpt", key="weights")


def write_lightning(path: Path) -> None:
    """Write averages without names."""
    torch.save({"state_dict": weights(), "ema": {"shadow_params": [torch.ones(1)]}}, path)


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("a.pth", lambda _: None, "no such file"),
    "folder": ("a.pth", lambda path: path.mkdir(), "no such file"),
    "other format": ("a.onnx", lambda path: path.write_bytes(b"x"), r"\.safetensors, \.pth, \.pt"),
    "pointer": ("a.pth", lambda path: path.write_text("version https://git-lfs"), "23 bytes"),
    "empty file": ("a.ckpt", lambda path: path.touch(), "0 bytes"),
    "empty safetensors": ("a.safetensors", lambda path: path.touch(), "Download it again"),
    "list": ("a.pt", lambda path: torch.save([torch.ones(1)], path), "holds a list"),
    "nothing": ("a.pt", lambda path: torch.save({}, path), "holds nothing"),
    "numbers": ("a.pt", lambda path: torch.save({"lr": 1.0}, path), r"holds lr \(float\)"),
    "object": ("a.pth", lambda path: torch.save(nn.Linear(1, 1), path), "not loaded for safety"),
    "nameless": ("a.ckpt", write_lightning, "read_torch_ema"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_without_weights_is_refused(tmp_path: Path, case: str) -> None:
    """The error names the file, what it is, and what to do; a missing one is a missing file."""
    name, write, said = BAD_FILES[case]
    write(tmp_path / name)

    with pytest.raises(CheckpointError, match=said) as caught:
        read_state_dict(tmp_path / name)

    assert str(tmp_path / name) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) == ("no such file" in said)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    """A download that broke off is named as damaged."""
    path = tmp_path / f"a{suffix}"
    state = {"a": torch.arange(1000.0)}
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match=r"damaged.*Download it again"):
        read_state_dict(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an archive of PyTorch's."""
    path = tmp_path_factory.mktemp("archive") / "a.pth"
    torch.save({"a": torch.arange(100.0)}, path)
    return path


def test_a_flipped_bit_in_an_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    """PyTorch loads such a file without a word; its checksums tell."""
    content = bytearray(archive.read_bytes())
    content[content.index(torch.arange(100.0).numpy().tobytes()) + 40] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    assert not torch.equal(torch.load(tmp_path / "a.pth")["a"], torch.arange(100.0))

    with pytest.raises(CheckpointError, match="Bad CRC-32"):
        read_state_dict(tmp_path / "a.pth")


@settings(max_examples=100)
@given(data=st.data())
def test_damage_anywhere_in_an_archive_is_refused_or_harmless(
    archive: Path, data: st.DataObject
) -> None:
    """Whichever byte changes, the weights are right or there are none."""
    content = bytearray(archive.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = archive.with_name("damaged.pth")
    damaged.write_bytes(content)

    try:
        read = read_state_dict(damaged)
    except CheckpointError:
        return
    assert torch.equal(read["a"], torch.arange(100.0))


@settings(max_examples=60)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_no_garbage_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    """Whatever a file holds, it is weights or a `CheckpointError`."""
    path = tmp_path_factory.getbasetemp() / f"garbage{suffix}"
    path.write_bytes(content)

    with pytest.raises(CheckpointError):
        read_state_dict(path)


def network() -> nn.Sequential:
    """Build a small network."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_strict_loading_loads_everything_or_nothing() -> None:
    """What is missing, unexpected and misshapen is listed with shapes; no tensor is touched."""
    model = network()
    state = {name: torch.full_like(value, 9) for name, value in model.state_dict().items()}
    state["0.weight"] = torch.ones(5, 3)
    state["2.weight"] = state.pop("0.bias")

    with pytest.raises(CheckpointError) as caught:
        load_strict(model, state, "a.pth")

    for part in (
        "a.pth",
        "Sequential",
        "missing (1): 0.bias",
        "unexpected (1): 2.weight",
        "misshapen (1): 0.weight [5, 3] instead of [4, 3]",
    ):
        assert part in str(caught.value)
    assert not any((value == 9).all() for value in model.state_dict().values())


def test_strict_loading_says_which_architecture_was_expected() -> None:
    """A model that keeps its configuration is described by it."""
    model = nn.Linear(1, 1)
    model.config = "width=7"  # type: ignore[assignment]  # as our models keep theirs

    with pytest.raises(CheckpointError, match="than Linear width=7"):
        load_strict(model, {}, "a.pth")


def test_long_lists_are_cut_and_counted() -> None:
    """Another network's hundreds of names do not bury the message."""
    state = {f"layer{number}": torch.ones(1) for number in range(300)}

    with pytest.raises(CheckpointError, match=r"unexpected \(300\): .* and 292 more") as caught:
        load_strict(network(), state, "a.pth")
    assert len(str(caught.value)) < 700


def test_a_model_on_the_meta_device_takes_the_tensors() -> None:
    """Large networks load without a second copy of their weights."""
    source = network()
    with torch.device("meta"):
        model = network()

    load_strict(model, source.state_dict(), "memory")

    assert model[0].weight.data_ptr() == source[0].weight.data_ptr()
    assert torch.equal(model.eval()(torch.ones(2, 3)), source.eval()(torch.ones(2, 3)))

"""Weights on disk: read in every published form, loaded strictly, saved with their digest.

A checkpoint of ours is a directory: `model.safetensors`, and `config.json` with the configuration
and the digest of the weights. The digest is the weights' identity: it is taken of the tensors, not
of the file, so it survives a change of container, device or memory format.
"""

import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PICKLES = (".pth", ".pt", ".ckpt", ".bin")
CONTAINERS = ("params_ema", "ema", "params", "state_dict")  # an average before the raw weights
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
LISTED = 8  # names that an error lists before it says how many more there are


class CheckpointError(ValueError):
    """Weights that cannot be used; the message says what came, what was expected, what to do."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No such file."""


def hub_remedy(error: Exception) -> str:
    """Name the variable that moves the hub's files, if it was a file that stopped a download."""
    if isinstance(error, OSError) and error.filename is not None:
        return "; the hub keeps files in ~/.cache/huggingface: set HF_HOME to a folder of yours"
    return ""


def read_state_dict(
    path: str | Path, *, key: str | None = None, prefix: str = ""
) -> dict[str, Tensor]:
    """Read the tensors of a weights file, on the CPU.

    Weights may lie in the file itself or under one of `CONTAINERS`; if under several, the first of
    them is taken.

    Args:
        path: .safetensors, .pth, .pt, .ckpt or .bin.
        key: the container to read, in place of the search.
        prefix: take only the tensors whose names begin so, and cut it off (Lightning: "model.").

    Raises:
        CheckpointError: missing, damaged, or not weights; it names the file and what to do.
    """
    values = _open_container(read_file(path), key, path)
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in values):
            values = {name.removeprefix(wrapper): value for name, value in values.items()}
    chosen = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    if not chosen:
        raise CheckpointError(f"{path}: no name begins with {prefix!r}: {_listed(list(values))}")
    return chosen


def read_file(path: str | Path) -> dict[str, Any]:
    """Read everything a weights file holds: tensors by name, or containers of them.

    Pickles are read with ``weights_only``, and checked against their own checksums, which PyTorch
    leaves out.

    Raises:
        CheckpointError: missing, damaged, or with more than tensors and plain values.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *PICKLES):
        raise CheckpointError(
            f"{path}: unknown format; give a file named .safetensors, {', '.join(PICKLES)}"
        )
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: no such file; check the path, or download it there")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):  # files of PyTorch before 1.6 are none
            check_records(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        raise CheckpointError(
            f"{path}: damaged, or more than weights ({path.stat().st_size} bytes; "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}). Download it again; if "
            "it is whole, it pickles objects that are not loaded for safety: save its tensors alone"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    return {str(name): value for name, value in content.items()}


def check_records(path: Path) -> None:
    """Compare each record of a PyTorch archive with its CRC-32, if it has one.

    Raises:
        zipfile.BadZipFile: one differs, or is marked as a folder.
    """
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.external_attr & 0x10:  # a folder: PyTorch would read arbitrary bytes for it
                raise zipfile.BadZipFile(f"{record.filename} is marked as a folder")
            if record.CRC:
                archive.read(record)


def _open_container(content: dict[str, Any], key: str | None, path: object) -> dict[str, Tensor]:
    """Return the tensors by name, which lie in ``content`` or in one of its values."""
    if key is not None and key not in content:
        raise CheckpointError(f"{path}: no key {key!r}; it has {_listed(list(content))}")
    found = key or next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), "")
    values = content.get(found, content)
    if isinstance(values, Mapping) and "shadow_params" in values:
        raise CheckpointError(
            f"{path}: {found!r} holds averages without names, as torch_ema saves them; name "
            "them by `models.ema.read_torch_ema`, or read the raw weights with key='state_dict'"
        )
    if not isinstance(values, Mapping):
        values = {found: values}  # refused below, by name and type
    strange = [f"{k} ({type(v).__name__})" for k, v in values.items() if not isinstance(v, Tensor)]
    if strange or not values:
        raise CheckpointError(
            f"{path}: no weights; expected tensors by name, at the top or under one of "
            f"{', '.join(CONTAINERS)}. It holds {_listed(strange) or 'nothing'}: give the right "
            "file, or the container as `key`"
        )
    return {str(name): value for name, value in values.items()}


def _listed(names: list[str]) -> str:
    """Join the first names, and count the others."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor], source: object) -> None:
    """Load weights that fit ``model`` exactly, or none of them.

    A model on the meta device takes the tensors themselves; any other keeps its device and dtype.
    ``source`` says in the error where the weights are from.

    Raises:
        CheckpointError: lists the missing, the unexpected and the misshapen, with both shapes.
    """
    expected = model.state_dict()
    problems = {
        "missing": sorted(expected.keys() - state_dict.keys()),
        "unexpected": sorted(state_dict.keys() - expected.keys()),
        "misshapen": [
            f"{name} {list(state_dict[name].shape)} instead of {list(value.shape)}"
            for name, value in expected.items()
            if name in state_dict and state_dict[name].shape != value.shape
        ],
    }
    found = [f"{what} ({len(x)}): {_listed(x)}" for what, x in problems.items() if x]
    if found:
        config = getattr(model, "config", "")
        raise CheckpointError(
            f"{source}: weights of another architecture than {type(model).__name__} {config}; "
            f"{'; '.join(found)}. Build the model with the configuration that the weights are of"
        )
    on_meta = any(value.is_meta for value in expected.values())
    model.load_state_dict(state_dict, assign=on_meta)


def uninitialised() -> AbstractContextManager[object]:
    """Let networks be built without drawing the kernels that `load_strict` is to replace.

    Drawing them takes a LooUFormer of 151 M parameters most of a second. All else that a network
    computes for itself, such as its positions and masks, is computed.
    """
    return _NoKernels()


class _NoKernels(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is nn.init.kaiming_uniform_:  # of linear layers and convolutions
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def weights_digest(state_dict: Mapping[str, Tensor]) -> str:
    """Hash weights by content: SHA-256 in hex over the sorted (name, dtype, shape, values).

    It reads one tensor at a time, and copies only what is not already contiguous on the CPU.
    """
    sha = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach()
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        values = tensor.cpu().contiguous().reshape(-1)
        sha.update(values.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_checkpoint(
    directory: str | Path, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
) -> str:
    """Write a checkpoint and return the digest of its weights.

    Each file appears whole and the configuration last, so what a killed save leaves behind is
    refused by `load_checkpoint`.

    Args:
        directory: made if it is missing; a checkpoint in it is replaced.
        state_dict: the weights.
        config: JSON values, as of `dataclasses.asdict`.
    """
    directory = Path(directory)
    digest = weights_digest(state_dict)
    text = json.dumps({"weights_sha256": digest, "config": config}, indent=1, allow_nan=False)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(
        directory / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"})
    )
    replace_file(directory / CONFIG, lambda path: path.write_text(text + "\n"))
    return digest


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, and give it its name once its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors would let the owner alone read
        write(temporary)
        temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration and the weights that `save_checkpoint` wrote.

    Raises:
        CheckpointError: missing, damaged, or the weights are not those of the configuration.
    """
    directory = Path(directory)
    saved = _read_config(directory)
    state_dict = read_file(directory / WEIGHTS)
    if (digest := weights_digest(state_dict)) != saved["weights_sha256"]:
        raise CheckpointError(
            f"{directory}: weights' digest is {digest[:12]}, {CONFIG} has "
            f"{saved['weights_sha256'][:12]}: "
            "an interrupted save, or a changed file. Copy both again, or take an earlier checkpoint"
        )
    return saved["config"], state_dict


def read_digest(directory: str | Path) -> str:
    """Return the digest that a checkpoint was saved with, without reading its weights."""
    return str(_read_config(Path(directory))["weights_sha256"])


def _read_config(directory: Path) -> dict[str, Any]:
    """Read config.json as {"weights_sha256": str, "config": dict}."""
    path = directory / CONFIG
    expected = f"expected a folder with {WEIGHTS} and {CONFIG}, as `save_checkpoint` writes them"
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: no such file; {expected}")
    try:
        saved = json.loads(path.read_bytes())
        is_ours = isinstance(saved["weights_sha256"], str) and isinstance(saved["config"], dict)
    except (ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise CheckpointError(f"{path}: no configuration of ours; {expected}; copy it again")
    return dict(saved)

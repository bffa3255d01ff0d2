"""The files of a published Q-Align: a local folder or a hub id -> mapped tensors by name.

Nothing here reads a whole file: names, shapes and dtypes come from headers, and a tensor's bytes
are read when they are used. Only tensors are ever unpickled, and no code is fetched.
"""

import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import hub_remedy

LICENCE = (
    "Licence, for you to settle first: Q-Align's code repository is non-commercial (S-Lab License "
    "1.0), the model card of q-future/one-align says MIT, and LLaMA-2's terms apply."
)
EXPECTED = (
    "Expected: config.json, and pytorch_model-*.bin with pytorch_model.bin.index.json or "
    "model-*.safetensors with model.safetensors.index.json (a single pytorch_model.bin or "
    "model.safetensors also does), as published in q-future/one-align (16.4 GB). Get them with "
    f"`hf download q-future/one-align --local-dir FOLDER`, then give FOLDER. {LICENCE}"
)
SMALL_FILES = ("config.json", "preprocessor_config.json", "tokenizer.model", "*.index.json")
KINDS = (("model", ".safetensors"), ("pytorch_model", ".bin"))  # the first that is there is read
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class BadCheckpoint(ValueError):  # noqa: N818  (reads as what it says)
    """The folder is not a Q-Align checkpoint that can be loaded; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A mapped weights file: its tensors, and the checksums that a .bin archive keeps."""

    path: Path
    tensors: Mapping[str, Tensor]
    checksums: frozenset[tuple[int, int]]  # (bytes, CRC-32) of the archive's records

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a .bin or .safetensors file.

        Raises:
            BadCheckpoint: the file is damaged, or holds more than tensors; it is named.
        """
        try:
            if path.suffix == ".safetensors":
                return cls(path, load_file(path), frozenset())
            checksums = _archive_checksums(path)
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, EOFError, RuntimeError, SafetensorError, zipfile.BadZipFile) as error:
            raise damaged(path, error) from error
        except pickle.UnpicklingError as error:
            raise damaged(path, f"{error}; nothing but tensors is unpickled") from error
        if not isinstance(tensors, dict) or not all(
            isinstance(value, Tensor) for value in tensors.values()
        ):
            raise damaged(path, "it does not hold a plain {name: tensor} mapping")
        return cls(path, tensors, checksums)

    def check(self, name: str) -> None:
        """Compare a tensor's bytes with the archive's checksum, which PyTorch itself does not.

        A .safetensors file keeps no checksums: there only its length is known to be right.

        Raises:
            BadCheckpoint: they differ.
        """
        if not self.checksums:
            return
        storage = self.tensors[name].untyped_storage()
        data = torch.tensor([], dtype=torch.uint8).set_(storage).numpy().data
        if (data.nbytes, zlib.crc32(data)) not in self.checksums:
            raise damaged(self.path, f"the bytes of {name} do not match their checksum")


def _archive_checksums(path: Path) -> frozenset[tuple[int, int]]:
    """List (bytes, CRC-32) of a .bin archive's records, and verify the one that gets unpickled.

    A file written with checksums switched off says 0 for each; it has none to compare.
    """
    with zipfile.ZipFile(path) as archive:
        records = [record for record in archive.infolist() if record.CRC]
        for record in records:
            if record.filename.endswith("/data.pkl"):
                archive.read(record)
    return frozenset((record.file_size, record.CRC) for record in records)


def damaged(path: Path, why: object) -> BadCheckpoint:
    """Say that a weights file cannot be used, and the remedy."""
    return BadCheckpoint(
        f"{path}: damaged, or not a weights file ({path.stat().st_size} bytes): {why}. Download it "
        "again; a file of some hundred bytes is a git-lfs pointer, which `git lfs pull` resolves"
    )


def weight_files(folder: Path) -> list[Path]:
    """List the weights files of a folder, as its index names them.

    Raises:
        BadCheckpoint: there are none, or some that the index names are absent.
    """
    for stem, suffix in KINDS:
        index = folder / f"{stem}{suffix}.index.json"
        if index.exists():
            names = indexed_files(index)
            absent = [name for name in names if not (folder / name).exists()]
            if absent:
                raise BadCheckpoint(f"{folder}: {index.name} names {absent}, which are absent")
            return [folder / name for name in names]
        if (folder / f"{stem}{suffix}").exists():
            return [folder / f"{stem}{suffix}"]
    raise BadCheckpoint(f"{folder}: no weights. {EXPECTED}")


def indexed_files(index: Path) -> list[str]:
    """Read the names of the shards from an index file, sorted.

    Raises:
        BadCheckpoint: it is not an index.
    """
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(
            f"{index}: not a weights index ({error!r}); download it again"
        ) from error


def locate(source: str | Path, revision: str | None = None) -> Path:
    """Turn a local folder or a hub id into a local folder; a hub id is downloaded or in the cache.

    Raises:
        BadCheckpoint: no such folder, or the hub does not deliver.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not HUB_ID.fullmatch(str(source)):
            raise BadCheckpoint(f"{source}: no such folder. {EXPECTED}")
        folder = _download(str(source), revision)
    if not (folder / "config.json").exists():
        raise BadCheckpoint(f"{folder}: no config.json. {EXPECTED}")
    return folder


def _download(hub_id: str, revision: str | None) -> Path:
    """Fetch a model's small files and one kind of its weights, safetensors if it has both."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*SMALL_FILES]))
        indexes = [folder / f"{stem}{suffix}.index.json" for stem, suffix in KINDS]
        names = next((indexed_files(index) for index in indexes if index.exists()), None)
        wanted = names or [f"{stem}{suffix}" for stem, suffix in KINDS]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise BadCheckpoint(
            f"{hub_id}: no such folder here, and the hub did not deliver it ({error}"
            f"{hub_remedy(error)}). {EXPECTED}"
        ) from error

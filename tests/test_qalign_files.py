"""A published folder's files are mapped, checked and named when something is wrong with them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.qalign.files import BadCheckpoint
from models.qalign.scorer import QAlign
from tests.support.qalign_checkpoint import random_state, write_checkpoint

IMAGE = np.random.default_rng(0).integers(0, 256, (45, 62, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint: two .bin shards, index, stale keys, bfloat16."""
    return write_checkpoint(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(published, tmp_path / "tiny"))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_every_container_loads_the_same_weights(
    tmp_path: Path, published: Path, kind: str, shards: int
) -> None:
    """.bin or safetensors, one file or many: the same tensors, digest and scores."""
    expected = QAlign.load(published)
    got = QAlign.load(write_checkpoint(tmp_path / "tiny", kind=kind, shards=shards))

    assert got.digest == expected.digest
    assert got.score([IMAGE]) == expected.score([IMAGE])
    theirs = expected.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in got.network.state_dict().items())


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("kept", [0, 130, 0.5])
def test_a_cut_shard_is_named(tmp_path: Path, kind: str, kept: float) -> None:
    """An empty file, a pointer's length, half a download: the error names the file and size."""
    folder = write_checkpoint(tmp_path / "tiny", kind=kind)
    shard = sorted(folder.glob(f"*2-of-*.{kind}"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])

    with pytest.raises(BadCheckpoint, match=rf"{shard.name}: damaged.*Download it again"):
        QAlign.load(folder)


@pytest.mark.parametrize("where", ["tensor", "pickle"])
def test_flipped_bits_of_a_bin_shard_are_found(folder: Path, where: str) -> None:
    """PyTorch reads over a wrong byte in silence; the archive's checksums do not."""
    shard = sorted(folder.glob("*.bin"))[0]
    data = bytearray(shard.read_bytes())
    place = data.index(b"data.pkl") + 200 if where == "pickle" else len(data) // 2
    data[place] ^= 0x40
    shard.write_bytes(data)

    with pytest.raises(BadCheckpoint, match=rf"{shard.name}: damaged"):
        QAlign.load(folder)


def test_a_bin_without_checksums_loads(tmp_path: Path, published: Path) -> None:
    """Checksums switched off when the file was written are none, not wrong ones."""
    torch.serialization.set_crc32_options(False)
    try:
        folder = write_checkpoint(tmp_path / "tiny")
    finally:
        torch.serialization.set_crc32_options(True)

    assert QAlign.load(folder).score([IMAGE]) == QAlign.load(published).score([IMAGE])


class Payload:
    """Runs a command when unpickled without care."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_code_in_a_bin_shard_is_not_run(folder: Path) -> None:
    """Nothing but tensors is unpickled."""
    shard = sorted(folder.glob("*.bin"))[0]
    torch.save({"model.norm.weight": Payload()}, shard)

    with pytest.raises(BadCheckpoint, match="nothing but tensors is unpickled"):
        QAlign.load(folder)


def test_a_bin_of_something_else_is_named(folder: Path) -> None:
    """A training checkpoint with nested dictionaries is not mistaken for weights."""
    shard = sorted(folder.glob("*.bin"))[0]
    torch.save({"state_dict": random_state()}, shard)

    with pytest.raises(BadCheckpoint, match=r"does not hold a plain \{name: tensor\} mapping"):
        QAlign.load(folder)


def test_an_absent_shard_is_named(folder: Path) -> None:
    """The index names what should be there."""
    shard = sorted(folder.glob("*.bin"))[1]
    shard.unlink()

    with pytest.raises(BadCheckpoint, match=f"names .*{shard.name}.*absent"):
        QAlign.load(folder)


@pytest.mark.parametrize("what", ["config.json", "*.bin*"])
def test_no_weights_says_what_and_where(folder: Path, what: str) -> None:
    """Which files, how to get them, and whose licences: all in one message."""
    for path in folder.glob(what):
        path.unlink()

    with pytest.raises(BadCheckpoint) as error:
        QAlign.load(folder)
    for part in ("pytorch_model.bin.index.json", "hf download", "16.4 GB", "non-commercial", "MIT"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "/no/such/folder: no such folder"),
        ("nobody/nothing-here", "nobody/nothing-here: no such folder here, and the hub did not"),
        ("nobody/no..thing", "nobody/no..thing: no such folder here, and the hub did not"),
    ],
)
def test_a_source_that_is_nowhere_is_named(
    monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    """A path or hub id that leads nowhere says what was expected, offline too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(BadCheckpoint, match=f"{message}.*Expected: config.json"):
        QAlign.load(source)


def test_a_hub_id_fetches_one_kind_and_no_code(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub: the small files first, then the shards that the index names, no .py file."""
    asked = []

    def snapshot_download(hub_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((hub_id, revision, tuple(allow_patterns)))
        return str(published)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    scorer = QAlign.load("someone/one-align", revision="refs/pr/5")

    assert scorer.identity["model"] == "someone/one-align"
    assert [(hub_id, revision) for hub_id, revision, _ in asked] == [
        ("someone/one-align", "refs/pr/5")
    ] * 2
    assert asked[1][2] == tuple(path.name for path in sorted(published.glob("*.bin")))
    assert not any(
        pattern.endswith(("py", "*")) for _, _, patterns in asked for pattern in patterns
    )

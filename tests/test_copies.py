"""Weights in a bucket: copied once for all processes of a machine, and always whole."""

import errno
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import paths
from infra.copies import CONFIG, at_hand, local_copy
from infra.errors import UserError
from infra.folders.bucket_path import BucketPath
from infra.folders.contract import Missing
from infra.paths import path_of, write_bytes
from tests.conftest import PATIENCE
from tests.support.faulty_proxy import Fault, FaultyProxy

WEIGHTS = "model.safetensors"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def network(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BucketPath]:
    """Put a folder of a network into the bucket; this machine's cache is empty."""
    s3_proxy.harmless()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = path_of(f"s3://tests/copies/{tmp_path.name}")
    assert isinstance(folder, BucketPath)
    write_bytes(folder / CONFIG, b"{}")
    write_bytes(folder / WEIGHTS, b"first")
    write_bytes(folder / "train-000000.tar", b"a set")
    write_bytes(folder / "checkpoints" / WEIGHTS, b"below")
    write_bytes(folder.with_name(f"{folder.name}-more") / WEIGHTS, b"another")
    s3_proxy.harmless()
    yield folder
    s3_proxy.harmless()


def fetched(proxy: FaultyProxy) -> int:
    """Return how often the weights were fetched."""
    return proxy.count("GET", f"/{WEIGHTS}")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_folder_is_copied_once(network: BucketPath, s3_proxy: FaultyProxy) -> None:
    """The files just in it and no shards; the second call fetches nothing."""
    first = local_copy(network)

    assert contents(first) == {CONFIG: b"{}", WEIGHTS: b"first"}
    assert first.name == network.name
    assert local_copy(network) == first
    assert fetched(s3_proxy) == 1


def test_with_a_file_comes_its_configuration(network: BucketPath) -> None:
    """A checkpoint of ours may be given by the weights in it; without one the file is alone."""
    write_bytes(network / "alone" / "swinir.pth", b"theirs")

    assert contents(local_copy(network / WEIGHTS).parent) == {CONFIG: b"{}", WEIGHTS: b"first"}
    assert contents(local_copy(network / "alone" / "swinir.pth").parent) == {
        "swinir.pth": b"theirs"
    }


def test_what_has_changed_is_copied_again(network: BucketPath) -> None:
    """The copy before stays for those who use it."""
    before = local_copy(network)
    write_bytes(network / WEIGHTS, b"other")

    assert (local_copy(network) / WEIGHTS).read_bytes() == b"other"
    assert (before / WEIGHTS).read_bytes() == b"first"


def test_what_changes_meanwhile_is_of_one_version(
    network: BucketPath, s3_proxy: FaultyProxy
) -> None:
    """A network that is replaced while it is copied is no mixture of two."""

    def replace() -> None:
        write_bytes(network / CONFIG, b'{"second": 2}')
        write_bytes(network / WEIGHTS, b"second")

    s3_proxy.faults = [Fault(method="HEAD", path=f"/{WEIGHTS}", before=replace)]

    assert contents(local_copy(network)) == {CONFIG: b'{"second": 2}', WEIGHTS: b"second"}
    assert sorted(contents(paths.cache_folder()).values()).count(b"second") == 1


@pytest.mark.forks
def test_processes_at_once_fetch_it_once(network: BucketPath, s3_proxy: FaultyProxy) -> None:
    """The others wait until the first has it."""
    with FORK.Pool(3) as pool:
        found = pool.map_async(local_copy, [network] * 3).get(PATIENCE)

    assert len(set(found)) == 1
    assert contents(found[0]) == {CONFIG: b"{}", WEIGHTS: b"first"}
    assert fetched(s3_proxy) == 1


@pytest.mark.forks
def test_killed_in_the_middle_it_is_fetched_again(
    network: BucketPath, s3_proxy: FaultyProxy
) -> None:
    """A process dies when half of the weights have come; the next one has them whole."""
    dying = FORK.Process(target=local_copy, args=(network,))
    kill = Fault(method="GET", path=f"/{WEIGHTS}", midway=lambda: os.kill(dying.pid or 0, 9))
    s3_proxy.faults = [kill]
    dying.start()
    dying.join(PATIENCE)

    assert dying.exitcode == -9
    assert contents(local_copy(network)) == {CONFIG: b"{}", WEIGHTS: b"first"}
    assert not list(paths.cache_folder().rglob("*.partial"))


def test_a_damaged_copy_is_fetched_again(network: BucketPath) -> None:
    """Such as one from which somebody deleted a file."""
    (local_copy(network) / WEIGHTS).unlink()

    assert (local_copy(network) / WEIGHTS).read_bytes() == b"first"


def test_without_room_a_sentence_says_what_and_where(
    network: BucketPath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And another folder can be named, as it says."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match=r"s3://tests/.* is full.*XDG_CACHE_HOME") as caught:
            local_copy(network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))

    assert str(tmp_path / "cache") in str(caught.value)
    assert (tmp_path / "elsewhere") in local_copy(network).parents


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/1/home", "relative"])
def test_without_a_home_the_folder_for_temporary_files_is_used(
    network: BucketPath, monkeypatch: pytest.MonkeyPatch, home: str, tmp_path: Path
) -> None:
    """As in containers; a relative XDG_CACHE_HOME counts as none, as its standard says."""
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(paths.tempfile, "tempdir", str(tmp_path))

    assert (tmp_path / f"latent-pmrf-{os.getuid()}") in local_copy(network).parents


def test_what_is_not_in_a_bucket_stays_as_it_is(network: BucketPath, tmp_path: Path) -> None:
    """Local paths and names of networks; NAME= before a URI stays too."""
    for where in ("sd15-f8c4", "sim-vae/", f"flux-f8c16={tmp_path}", "org/name", "x=y/s3:/z"):
        assert at_hand(where) == where
    assert at_hand(str(network)) == str(local_copy(network))
    assert at_hand(f"flux-f8c16={network}") == f"flux-f8c16={local_copy(network)}"


def test_what_is_no_network_is_not_copied(network: BucketPath, s3_proxy: FaultyProxy) -> None:
    """A folder of photographs by mistake is terabytes: it is refused by its names."""
    for name in ("a.png", "b.png", "c.png"):
        write_bytes(network / "photographs" / name, b"")
    s3_proxy.harmless()
    with pytest.raises(Missing, match=r"photographs: .*no config.json, but a.png and 2 more"):
        local_copy(network / "photographs")
    with pytest.raises(Missing, match=r"nothing: there is no such file, and no folder with files"):
        local_copy(network / "nothing")

    assert all("list-type" in seen.path for seen in s3_proxy.seen)
    assert not (paths.cache_folder() / "copies").exists()

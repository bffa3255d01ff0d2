"""Forks, kills of a writer and kills of the server: the bytes are right, and nothing is left."""

import hashlib
import json
import multiprocessing
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.folders.contract import Folder
from infra.folders.opening import open_folder
from infra.folders.pool import Pool, Request
from infra.s3 import retries, uploading
from tests.conftest import PATIENCE, ROOT
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3_server import BUCKET, S3Server, use

CONTENT = random.Random(2).randbytes(12 << 20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SMALL = hashlib.sha256(CONTENT[:1000]).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, s3_proxy: FaultyProxy) -> Folder:
    """An empty folder."""
    s3_proxy.harmless()
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()
    return open_folder(f"s3://tests/processes/{name}")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A local file of three parts."""
    (tmp_path / "large").write_bytes(CONTENT)
    return tmp_path / "large"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_other_processes_make_their_own_client(folder: Folder, method: str) -> None:
    """However they are started, behind or (not by `fork`) beside the use of their parent's client.

    The parent is a process of its own: one that has run other tests has a fork server already, with
    the variables of those, and handlers of signals that its children would have too.
    """
    folder.put("name", CONTENT[:1000])
    command = (sys.executable, "-m", "tests.support.s3_children", "start", method, folder.uri)
    told = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE, check=True)
    parent, had, found = json.loads(told.stdout)

    assert not had
    assert {digest for _, digest in found} == {SMALL}
    assert parent not in {process for process, _ in found}


def test_threads_share_a_client(folder: Folder) -> None:
    """Eight write and read at once; everyone gets what is theirs."""

    def work(number: int) -> bool:
        folder.put(f"{number}", CONTENT[number : number + 5000])
        return folder.read(f"{number}") == CONTENT[number : number + 5000]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(32)))


@pytest.mark.forks
def test_a_forked_process_counts_its_own_faults(folder: Folder, s3_proxy: FaultyProxy) -> None:
    """The count of the parent is not the child's."""
    s3_proxy.faults.append(Fault(method="PUT", status=500))
    folder.put("name", b"")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_counts).get(PATIENCE) == {}

    assert retries.faults().counts()["500"] >= 1


def _counts() -> dict[str, int]:
    return retries.faults().counts()


def test_more_objects_than_a_page_has_are_listed_and_read(
    folder: Folder, s3_server: S3Server
) -> None:
    """Over pages of a thousand names, sorted, and nothing of the folder beside it."""
    names = [f"{number % 7}/{number:04d} e\u0301+%.json" for number in range(1007)]
    folder.child("beside").put("name", b"")
    below = folder.child("many")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as threads:
        use(patch, s3_server.endpoint)
        list(threads.map(lambda name: below.put(name, name.encode()), names))
        entries = list(below.list())
        assert len(list(open_folder(below.uri).objects())) == len(names)  # type: ignore[attr-defined]
        found = [bytearray(entry.size) for entry in entries]
        requests = [
            Request(entry.name, 0, [memoryview(data)])
            for entry, data in zip(entries, found, strict=True)
        ]
        errors = Pool(below, threads=8).read_many(requests)

    assert [one.name for one in entries] == sorted(names)
    assert errors == [None] * len(names)
    assert [data.decode() for data in found] == sorted(names)


def test_what_a_killed_writer_left_is_aborted_and_nothing_else(
    folder: Folder, large: Path, s3_proxy: FaultyProxy, s3_server: S3Server
) -> None:
    """A start on another machine knows the uploads of this folder from those of others."""
    plain, prefix = s3_server.client(), folder.uri.removeprefix(f"s3://{BUCKET}/")
    others = {
        (key, plain.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"])
        for key in (f"{prefix}/large", f"{prefix}/other", f"{prefix}-beside/large")
    }
    writer = _killed_writer(folder, large, s3_proxy)

    assert folder.size("large") is None
    assert list(folder.list()) == []
    assert len(_uploads(plain, prefix)) == len(others) + 1
    assert folder.child("below").abort_leftovers() == 0  # the record is with the file's folder
    assert folder.abort_leftovers() == 1
    assert _uploads(plain, prefix) == others
    assert folder.abort_leftovers() == 0
    assert writer == -9

    folder.put_file("large", large, DIGEST)
    assert hashlib.sha256(folder.read("large")).hexdigest() == DIGEST
    assert _uploads(plain, prefix) == others


def _killed_writer(folder: Folder, large: Path, proxy: FaultyProxy) -> int:
    """Start a process that uploads, kill it at its second part; returns its exit code."""
    started = threading.Event()

    def kill() -> None:
        started.wait()
        writer.kill()

    proxy.faults.append(Fault(method="PUT", path="partNumber=2", before=kill, reset=True))
    command = (sys.executable, "-m", "tests.support.s3_children", "upload", folder.uri, str(large))
    writer = subprocess.Popen(command, cwd=ROOT)
    started.set()
    return writer.wait(PATIENCE)


def _uploads(plain: object, prefix: str) -> set[tuple[str, str]]:
    listed = plain.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)  # type: ignore[attr-defined]
    return {(one["Key"], one["UploadId"]) for one in listed.get("Uploads", ())}


def test_a_killed_overwriter_leaves_the_old_file(
    folder: Folder, large: Path, s3_proxy: FaultyProxy
) -> None:
    """A file is whole at all times: the old one, then the new one."""
    folder.put("large", b"old")
    _killed_writer(folder, large, s3_proxy)

    assert folder.read("large") == b"old"
    assert folder.abort_leftovers() == 1
    assert folder.read("large") == b"old"


@pytest.mark.parametrize("moment", ["partNumber=2", "uploadId"])
def test_the_server_dies_in_an_upload(
    folder: Folder,
    large: Path,
    s3_proxy: FaultyProxy,
    s3_server: S3Server,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed amid the parts, or before they are joined: the upload goes on when it is back."""
    monkeypatch.setattr(uploading, "PART", 5 << 20)
    method = "POST" if moment == "uploadId" else "PUT"
    fault = Fault(method=method, path=moment, reset=True, before=_restart(s3_server))
    s3_proxy.faults.append(fault)
    folder.put_file("large", large, DIGEST)

    assert hashlib.sha256(folder.read("large")).hexdigest() == DIGEST
    assert [entry.name for entry in folder.list()] == ["large"]
    assert folder.abort_leftovers() == 0


def test_the_server_dies_in_a_read(
    folder: Folder, s3_proxy: FaultyProxy, s3_server: S3Server, tmp_path: Path
) -> None:
    """When half has come, the other half is read from the server that is back."""
    folder.put("large", CONTENT)
    s3_proxy.faults.append(Fault(method="GET", midway=_restart(s3_server)))
    folder.fetch("large", tmp_path / "copy", DIGEST)

    assert folder.size("large") == len(CONTENT)
    assert (tmp_path / "copy").read_bytes() == CONTENT


def _restart(server: S3Server) -> Callable[[], None]:
    def restart() -> None:
        server.kill()
        server.start()

    return restart


def test_a_pickled_folder_holds_no_client(folder: Folder) -> None:
    """What is sent to a worker is a few names."""
    folder.put("name", b"")

    assert len(pickle.dumps(folder)) < 500

"""What networks and servers do in passing is borne, counted and bounded; nothing is skipped."""

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import UsageError, UserError
from infra.folders.contract import Folder, Taken
from infra.folders.opening import open_folder
from infra.s3 import client, retries, uploading
from infra.s3.retries import Faults, Patience
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3_server import S3Server

CONTENT = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MANY = 10**6
COMPLETED = "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>"


@pytest.fixture
def folder(
    tmp_path: Path, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    """A folder with one object, faults not yet made, and no time to lose between attempts."""
    s3_proxy.harmless()
    monkeypatch.setattr(retries, "patience", lambda: Patience(first_delay=0.001))
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()
    folder = open_folder(f"s3://tests/faults/{name}")
    folder.put("name", CONTENT)
    monkeypatch.setattr(retries, "_faults", Faults())
    s3_proxy.harmless()
    yield folder
    s3_proxy.harmless()


def ranges(proxy: FaultyProxy) -> list[str]:
    """Return the ranges that were asked for."""
    return [seen.headers.get("Range", "all") for seen in proxy.seen if seen.method == "GET"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 500, "code": "InternalError"}, "InternalError"),
        ({"status": 502}, "502"),
        ({"status": 400, "code": "RequestTimeout"}, "RequestTimeout"),
        ({"reset": True}, "ConnectionClosedError"),
        ({"lose": True}, "ConnectionClosedError"),
    ],
)
def test_a_burst_of_faults_is_borne_and_counted(
    folder: Folder, s3_proxy: FaultyProxy, fault: dict[str, object], reason: str
) -> None:
    """Every kind of request comes through, with the same result, and the log has the number."""
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        s3_proxy.faults.append(Fault(times=2, method=method, **fault))  # type: ignore[arg-type]
    folder.put("other", b"x")
    assert folder.read("name") == CONTENT
    assert folder.size("name") == len(CONTENT)
    folder.delete("name")

    assert [entry.name for entry in folder.list()] == ["other"]
    assert retries.faults().counts()[reason] in (6, 8)  # HEAD has no body to say the reason


def test_a_busy_server_is_waited_for(
    folder: Folder, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked less often for a while, by all requests of the process."""
    monkeypatch.setattr(client, "_connection", client.Connection())  # it remembers the slow pace
    s3_proxy.faults += [Fault(status=503, code="SlowDown"), Fault(status=429)]

    assert folder.read("name") == CONTENT
    assert retries.faults().counts() == {"SlowDown": 1, "429": 1}


def test_a_broken_read_goes_on_at_the_byte(folder: Folder, s3_proxy: FaultyProxy) -> None:
    """Only what did not come is asked for again, however often the body ends early."""
    s3_proxy.faults.append(Fault(times=MANY, method="GET", truncate=50_000))
    data = bytearray(len(CONTENT) - 100)
    folder.read_into("name", 100, [memoryview(data)])

    starts = [int(text.removeprefix("bytes=").split("-")[0]) for text in ranges(s3_proxy)]
    assert data == CONTENT[100:]
    assert starts == [100 + 50_000 * number for number in range(len(starts))]
    assert len(starts) == 6


def test_a_whole_object_is_read_over_broken_connections(
    folder: Folder, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """By `read` and by `fetch`; each attempt that brings bytes renews the patience."""
    s3_proxy.faults.append(Fault(times=MANY, method="GET", truncate=20_000))
    folder.fetch("name", tmp_path / "copy")

    assert folder.read("name") == (tmp_path / "copy").read_bytes() == CONTENT
    assert sum(retries.faults().counts().values()) == 2 * 14  # of 15 pieces


def test_a_stalled_or_empty_answer_does_not_stall_forever(
    folder: Folder, s3_proxy: FaultyProxy
) -> None:
    """An answer that brings no byte is one of a bounded number."""
    s3_proxy.faults.append(Fault(times=MANY, method="GET", truncate=0))
    with pytest.raises(UserError, match=r"broke .*run the same command again.* \(tried 10 times\)"):
        folder.read("name")

    assert s3_proxy.count("GET") == 10


def test_a_read_across_two_versions_is_refused(folder: Folder, s3_proxy: FaultyProxy) -> None:
    """Half of the old object and half of the new one never make one."""

    def replace() -> None:
        s3_proxy.faults.clear()
        folder.put("name", CONTENT[::-1])

    s3_proxy.faults += [
        Fault(method="GET", truncate=50_000),
        Fault(method="GET", before=replace),
    ]
    with pytest.raises(UserError, match="the object was replaced while it was read"):
        folder.read("name")


def test_latency_changes_nothing(folder: Folder, s3_proxy: FaultyProxy) -> None:
    """A slow line is waited for."""
    s3_proxy.latency = 0.05
    folder.put("other", b"x")

    assert folder.read("other") == b"x"
    assert retries.faults().counts() == {}


def test_a_busy_server_is_given_up_after_a_number_of_attempts(
    folder: Folder, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has what the server said, and the number is the user's to set."""
    monkeypatch.undo()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    s3_proxy.faults.append(Fault(times=MANY, status=500, code="InternalError"))
    with pytest.raises(
        UserError, match=r"GetObject was answered with 500 \(InternalError\).*\(tried 2 times\)"
    ):
        folder.read("name")

    assert s3_proxy.count("GET") == 2


def test_delays_grow_to_a_limit_and_differ() -> None:
    """Twice as long each time, half of it at random, and never above the limit."""
    patience = Patience(first_delay=0.2, longest_delay=20)
    for failed in range(1, 30):
        limit = min(20.0, 0.2 * 2 ** (failed - 1))
        delays = [patience.delay(failed) for _ in range(20)]

        assert all(limit / 2 <= delay <= limit for delay in delays)
        assert len(set(delays)) > 1


def test_the_log_hears_of_faults_seldom(caplog: pytest.LogCaptureFixture) -> None:
    """The 1st, 2nd, 4th ... of each kind: a storm of a million takes twenty lines."""
    faults = Faults()
    for _ in range(1000):
        faults.add("SlowDown", "s3://tests/name")
    faults.add("ConnectionClosedError", "s3://tests/name")

    assert faults.counts() == {"SlowDown": 1000, "ConnectionClosedError": 1}
    assert len(caplog.messages) == 11
    assert caplog.messages[-2] == "s3://tests/name: SlowDown; sent again (number 512 of this kind)"


@pytest.mark.parametrize("times", [3, MANY])
def test_a_refusal_amid_a_good_run_is_tried_again_then_final(
    folder: Folder, s3_proxy: FaultyProxy, times: int
) -> None:
    """Three more attempts: permissions of a busy store fail for a moment now and then."""
    s3_proxy.faults.append(Fault(times=times, method="PUT", status=403, code="AccessDenied"))
    if times == 3:
        folder.put("other", b"x")
    else:
        with pytest.raises(UserError, match=r"permission s3:PutObject .*\(tried 4 times\)"):
            folder.put("other", b"x")

    assert s3_proxy.count("PUT") == 4


def test_a_refusal_at_the_start_is_final(
    folder: Folder, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has not been served yet lacks a permission, and is told at once."""
    monkeypatch.setattr(client, "_connection", client.Connection())
    s3_proxy.faults.append(Fault(times=MANY, method="PUT", status=403, code="AccessDenied"))
    with pytest.raises(UserError, match="permission s3:PutObject"):
        folder.put("other", b"x")

    assert s3_proxy.count("PUT") == 1


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A local file that takes two parts, and its digest."""
    monkeypatch.setattr(uploading, "PART", 5 << 20)
    monkeypatch.setattr(uploading, "THREADS", 2)
    (tmp_path / "large").write_bytes(CONTENT * 20)
    return tmp_path / "large", hashlib.sha256(CONTENT * 20).hexdigest()


@pytest.mark.parametrize(
    ("checksums", "fault"),
    [
        ("when_supported", {"method": "PUT", "path": "partNumber=2", "times": 2, "reset": True}),
        ("when_supported", {"method": "PUT", "path": "partNumber=2", "lose": True}),
        ("when_supported", {"method": "PUT", "path": "partNumber=2", "corrupt": True}),
        ("when_supported", {"method": "POST", "path": "uploads", "lose": True}),
        ("when_supported", {"method": "POST", "path": "uploadId", "lose": True}),
        ("when_required", {"method": "POST", "path": "uploadId", "status": 500}),
        ("when_required", {"method": "PUT", "path": "partNumber=2", "corrupt": True}),
    ],
)
def test_an_upload_in_parts_bears_faults(
    folder: Folder,
    large: tuple[Path, str],
    s3_proxy: FaultyProxy,
    checksums: str,
    fault: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever request fails, in whichever way: the object has the bytes of the file."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    monkeypatch.setattr(client, "_connection", client.Connection())
    s3_proxy.faults.append(Fault(**fault))  # type: ignore[arg-type]
    assert folder.put_file("large", *large)

    assert retries.faults().counts()
    assert hashlib.sha256(folder.read("large")).hexdigest() == large[1]
    assert [entry.name for entry in folder.list()] == ["large", "name"]


def checksum_headers(proxy: FaultyProxy) -> set[str]:
    """Return the kinds of checksums that bodies were sent with."""
    names = {name.lower() for seen in proxy.seen if seen.method == "PUT" for name in seen.headers}
    return {name for name in names if "md5" in name or "checksum" in name or "trailer" in name}


@pytest.mark.parametrize(
    ("setting", "sent"),
    [("when_supported", {"x-amz-checksum-sha256"}), ("when_required", {"content-md5"})],
)
def test_bodies_carry_the_checksum_that_is_set(
    folder: Folder,
    large: tuple[Path, str],
    s3_proxy: FaultyProxy,
    setting: str,
    sent: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small and in parts; and none of them needs the trailers that older servers choke on."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", setting)
    monkeypatch.setattr(client, "_connection", client.Connection())
    folder.put("other", b"x")
    folder.put_file("large", *large)
    gets = s3_proxy.count("GET")

    assert sent <= checksum_headers(s3_proxy)
    assert not any("trailer" in name or "crc" in name for name in checksum_headers(s3_proxy))
    assert not gets  # nothing was read back


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("right", [True, False])
def test_bytes_are_read_back_from_a_server_that_gives_no_digest(
    folder: Folder,
    large: tuple[Path, str],
    s3_server: S3Server,
    s3_proxy: FaultyProxy,
    name: str,
    right: bool,
) -> None:
    """What it says it stored is not believed: wrong bytes are deleted, and named."""
    file = large[0].with_name(name)
    file.write_bytes(CONTENT if name == "small" else CONTENT * 20)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    bucket, _, prefix = folder.uri.removeprefix("s3://").partition("/")

    def store() -> None:
        stored = file.read_bytes() if right else file.read_bytes()[:-1] + b"?"
        place = {"Bucket": bucket, "Key": f"{prefix}/{name}"}
        s3_server.client().put_object(**place, Body=stored, Metadata={"sha256": digest})

    s3_proxy.faults += [
        Fault(method="POST", path="uploadId", status=200, body=COMPLETED, before=store),
        Fault(method="PUT", path="/small", status=200, headers={"ETag": "x"}, before=store),
    ]
    if right:
        assert folder.put_file(name, file, digest)
        assert not folder.put_file(name, file, digest)
        assert folder.size(name) == file.stat().st_size
    else:
        with pytest.raises(UserError, match=f"{name}: the server stored other bytes than were"):
            folder.put_file(name, file, digest)
        assert folder.size(name) is None
        assert folder.put_file(name, file, digest)  # as the message advises
        assert folder.size(name) == file.stat().st_size


def test_the_answer_to_an_exclusive_write_may_be_lost(
    folder: Folder, s3_proxy: FaultyProxy
) -> None:
    """The second attempt finds its own bytes, and knows them."""
    s3_proxy.faults.append(Fault(method="PUT", path="/lock", lose=True))
    folder.put("lock", b"writer 1", exclusive=True)
    with pytest.raises(Taken):
        folder.put("lock", b"writer 2", exclusive=True)


def test_writers_that_race_for_a_name_are_told_apart(folder: Folder) -> None:
    """Of eight, one wins, and seven know that they did not."""

    def write(number: int) -> bool:
        try:
            folder.put("lock", b"writer %d" % number, exclusive=True)
        except Taken:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(write, range(8)))

    assert sum(won) == 1
    assert folder.read("lock") == b"writer %d" % won.index(True)


def test_a_digest_that_differs_on_the_way_is_read_again(
    folder: Folder, s3_server: S3Server
) -> None:
    """An object whose bytes are not those that were stored is never returned."""
    bucket, _, prefix = folder.uri.removeprefix("s3://").partition("/")
    s3_server.client().put_object(
        Bucket=bucket, Key=f"{prefix}/name", Body=b"other", Metadata={"sha256": DIGEST}
    )
    with pytest.raises(UserError, match=rf"name: has the SHA-256 .*, and {DIGEST} was expected"):
        folder.read("name")


def test_an_upload_that_fails_for_good_leaves_nothing(
    folder: Folder, large: tuple[Path, str], s3_proxy: FaultyProxy, s3_server: S3Server
) -> None:
    """Its parts are removed at once; if that fails too, the next start finds the record."""
    refused = {"times": MANY, "status": 403, "code": "AccessDenied"}
    s3_proxy.faults.append(Fault(method="PUT", path="partNumber=2", **refused))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="s3:PutObject"):
        folder.put_file("large", *large)
    assert folder.abort_leftovers() == 0

    s3_proxy.faults.append(Fault(method="DELETE", **refused))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="s3:PutObject"):
        folder.put_file("large", *large)
    s3_proxy.faults.clear()
    assert folder.abort_leftovers() == 1

    prefix = folder.uri.removeprefix("s3://tests/")
    assert "Uploads" not in s3_server.client().list_multipart_uploads(Bucket="tests", Prefix=prefix)
    assert [entry.name for entry in folder.list()] == ["name"]


@pytest.mark.parametrize("attempts", ["0", "many", "-1", ""])
def test_a_number_of_attempts_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, attempts: str
) -> None:
    """Instead of another number in its place."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    with pytest.raises(UsageError, match=r"AWS_MAX_ATTEMPTS is .*; give a whole number from 1 on"):
        open_folder("s3://tests/faults").read("name")

"""What cannot be done is said in one sentence: object, cause and remedy, and never a secret."""

import contextlib
import datetime
import hashlib
import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.auth
import botocore.compat
import botocore.exceptions
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.errors import UserError
from infra.folders.contract import Folder, Missing
from infra.folders.opening import open_folder
from infra.s3 import client, retries
from infra.s3.errors import explained
from infra.s3.retries import Patience
from tests.conftest import free_port
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3_server import OWNER, READER, ROLE, S3Server, use

MANY = 10**6
SECRETS = (OWNER[1], READER[1])


@pytest.fixture
def folder(s3_proxy: FaultyProxy) -> Iterator[Folder]:
    """A folder with the object `name`, by all rights and without faults."""
    s3_proxy.harmless()
    folder = open_folder("s3://tests/refusals/rights")
    folder.put("name", b"content")
    yield folder
    s3_proxy.harmless()


def refusal(action: Callable[[], object]) -> str:
    """Return what the user is told; no secret and no line break is in it."""
    with pytest.raises(UserError) as refused:
        action()
    said = str(refused.value)
    assert not any(secret in said for secret in SECRETS)
    assert "\n" not in said
    return said


def test_read_only_credentials_may_read(
    folder: Folder, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they may not do is named, with the permission that it needs."""
    use(monkeypatch, s3_server.endpoint, READER)
    (tmp_path / "file").write_bytes(b"")

    assert folder.read("name") == b"content"
    assert [one.name for one in folder.list()] == ["name"]
    for action, call, permission in (
        (lambda: folder.put("new", b""), "PutObject", "s3:PutObject"),
        (lambda: folder.delete("name"), "DeleteObject", "s3:DeleteObject"),
    ):
        said = refusal(action)
        assert f"{call} was refused; the credentials need the permission {permission}" in said
        assert said.startswith("s3://tests/refusals/")


def test_a_missing_bucket_is_named(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every request, also by the one whose answer has no body to say so."""
    use(monkeypatch, s3_server.endpoint)
    folder = open_folder("s3://no-such-bucket/x")
    for action in (
        lambda: folder.read("name"),
        lambda: folder.put("name", b""),
        lambda: folder.size("name"),
        lambda: list(folder.list()),
    ):
        assert "there is no bucket no-such-bucket at http://127.0.0.1" in refusal(action)


def test_a_missing_object_may_be_a_forbidden_one(folder: Folder, s3_proxy: FaultyProxy) -> None:
    """Without s3:ListBucket, S3 answers 403 for both; the message says so, and what to ask for."""
    s3_proxy.faults += [
        Fault(times=MANY, method="HEAD", status=403),
        Fault(times=MANY, method="GET", status=403, code="AccessDenied"),
    ]
    retries_at_once = Patience(first_delay=0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries, "patience", lambda: retries_at_once)
        for action in (lambda: folder.size("none"), lambda: folder.read("none")):
            said = refusal(action)
            assert f"{folder.uri}/none: missing or forbidden" in said
            assert "s3:GetObject on the object and s3:ListBucket on the bucket tests" in said


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        (("UNKNOWNKEY", OWNER[1]), r"does not accept the access key .*\(InvalidAccessKeyId\)"),
        ((OWNER[0], READER[1]), r"does not accept the access key .*\(SignatureDoesNotMatch\)"),
        (None, "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ((OWNER[0], ""), "AWS credentials"),
    ],
)
def test_wrong_credentials_are_said(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    credentials: tuple[str, str] | None,
    said: str,
) -> None:
    """Unknown, wrong, none or half: which variables to set."""
    use(monkeypatch, s3_server.endpoint, credentials)
    folder = open_folder("s3://tests/refusals/rights")

    with pytest.raises(UserError, match=said):
        folder.read("name")
    assert refusal(lambda: folder.read("name"))


def test_instance_metadata_that_do_not_answer_cost_seconds(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a cloud's metadata is asked twice at most, by boto3 for a second each."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        use(monkeypatch, s3_server.endpoint, None)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        said = refusal(lambda: open_folder("s3://tests/refusals").read("name"))
        silent.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1

    assert "no AWS credentials were found" in said
    assert 1 <= asked <= 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ENDPOINT_URL_S3", "127.0.0.1:8333", "check AWS_ENDPOINT_URL_S3"),
        ("AWS_ENDPOINT_URL_S3", "http://", "check AWS_ENDPOINT_URL_S3"),
        ("AWS_REGION", "not a region", "AWS_REGION"),
        ("AWS_PROFILE", "nobody", "AWS_PROFILE names a profile that is not in"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """Before a request is made."""
    use(monkeypatch, s3_server.endpoint)
    monkeypatch.setenv(name, value)

    folder = open_folder("s3://tests/refusals/rights")
    for action in (lambda: folder.read("name"), lambda: folder.put("name", b"")):
        assert said in refusal(action)


def test_a_password_in_the_endpoint_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only scheme, host and port of the endpoint are shown."""
    port = free_port()
    use(monkeypatch, f"http://user:{OWNER[1].replace('/', '')}@127.0.0.1:{port}")
    monkeypatch.setattr(retries, "patience", lambda: Patience(unreachable=0))
    said = refusal(lambda: open_folder("s3://tests/refusals").read("name"))

    assert f"http://127.0.0.1:{port}" in said
    assert "user" not in said.replace("AWS", "")


def test_an_endpoint_that_is_down_is_given_up_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the clock: attempts end before eight seconds, and the last takes two at most."""
    use(monkeypatch, f"http://127.0.0.1:{free_port()}")
    clock = [0.0]
    monkeypatch.setattr(retries, "clock", lambda: clock[0])
    monkeypatch.setattr(retries, "wait", lambda seconds: clock.append(clock.pop() + seconds))
    said = refusal(lambda: open_folder("s3://tests/refusals").read("name"))

    assert "cannot be reached; check that the store is up and that AWS_ENDPOINT_URL_S3" in said
    assert 2 < clock[0] < Patience().unreachable
    assert Patience().unreachable + client.CONNECT_TIMEOUT <= 10


def test_an_endpoint_that_goes_down_in_the_middle(
    folder: Folder, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same message after good requests; a list is as patient as a read."""
    with FaultyProxy(s3_server.endpoint) as proxy:
        use(monkeypatch, proxy.endpoint)
        monkeypatch.setattr(retries, "patience", lambda: Patience(unreachable=0.1))
        assert folder.read("name") == b"content"

    for action in (lambda: folder.read("name"), lambda: list(folder.list())):
        assert "cannot be reached" in refusal(action)


@pytest.mark.parametrize(("minutes", "way"), [(20, "ahead of"), (-20, "behind")])
def test_a_clock_that_is_off_is_named_with_its_size(
    folder: Folder,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    minutes: int,
    way: str,
) -> None:
    """The server refuses the signature's time; by HEAD too, which has no body to say so."""
    true = botocore.compat.get_current_datetime

    def shifted(remove_tzinfo: bool = True) -> datetime.datetime:
        return true(remove_tzinfo) + datetime.timedelta(minutes=minutes)

    for module in (botocore.compat, botocore.auth):
        monkeypatch.setattr(module, "get_current_datetime", shifted)
    for action in (lambda: folder.read("name"), lambda: folder.size("name")):
        said = refusal(action)
        assert any(
            f"this machine's clock is 0:{shown} (h:mm:ss) {way} the server's" in said
            for shown in ("19:59", "20:00", "20:01", "20:02")
        )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(
                method="PUT",
                status=400,
                code="AuthorizationHeaderMalformed",
                headers={"x-amz-bucket-region": "eu-central-1"},
            ),
            "the bucket tests is in the region eu-central-1; set AWS_REGION to that",
        ),
        (Fault(method="PUT", status=301, code="PermanentRedirect"), "is in another region"),
        (Fault(method="PUT", status=507, code="InsufficientStorage"), "the store is full"),
    ],
)
def test_what_other_servers_answer_is_explained(
    folder: Folder, s3_proxy: FaultyProxy, fault: Fault, said: str
) -> None:
    """At once: none of these passes by itself."""
    s3_proxy.faults.append(Fault(**{**vars(fault), "times": MANY}))

    assert said in refusal(lambda: folder.put("new", b""))


def test_a_server_without_these_checksums_is_served_by_the_setting_that_is_advised(
    folder: Folder, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the standard variable, and with it the same write is done."""
    unknown = Fault(times=MANY, header="x-amz-checksum-sha256", status=501, code="NotImplemented")
    s3_proxy.faults.append(unknown)
    said = refusal(lambda: folder.put("new", b"content"))
    assert "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in said

    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    monkeypatch.setattr(client, "_connection", client.Connection())
    folder.put("new", b"content")
    assert folder.read("new") == b"content"
    folder.delete("new")


def test_a_certificate_of_an_own_authority(
    folder: Folder, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not trusted until AWS_CA_BUNDLE names it; then bytes come and go as without TLS."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(self_signed("127.0.0.1"))
    (tmp_path / "file").write_bytes(b"content")
    with FaultyProxy(s3_server.endpoint, certificate) as proxy:
        use(monkeypatch, proxy.endpoint)
        said = refusal(lambda: folder.read("name"))
        assert f"the certificate of {proxy.endpoint} is not trusted" in said
        assert "AWS_CA_BUNDLE" in said

        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        monkeypatch.setattr(client, "_connection", client.Connection())
        assert folder.read("name") == b"content"
        assert folder.put_file("tls", tmp_path / "file", hashlib.sha256(b"content").hexdigest())
        assert folder.read("tls") == b"content"
        folder.delete("tls")


def self_signed(address: str) -> bytes:
    """Return a certificate for an address, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    coding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(coding, serialization.PrivateFormat.PKCS8, plain)
    return certificate.public_bytes(coding) + private


def test_static_credentials_that_expire_end_the_run(folder: Folder, s3_proxy: FaultyProxy) -> None:
    """After one look for new ones; the message says how to renew them."""
    s3_proxy.faults.append(Fault(times=MANY, status=400, code="ExpiredToken"))

    assert "the credentials have expired; renew them" in refusal(lambda: folder.read("name"))
    assert "the credentials have expired" in refusal(lambda: folder.size("name"))


def test_a_credentials_file_that_was_renewed_is_read_again(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As helpers do that write new keys into it from time to time."""
    use(monkeypatch, s3_server.endpoint, None)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    folder = open_folder("s3://tests/refusals/rights")
    _write_credentials(file, OWNER)
    folder.put("name", b"content")
    connected = client.connection().client()
    _break_credentials(connected)
    assert folder.read("name") == b"content"


def _write_credentials(file: Path, keys: tuple[str, str]) -> None:
    file.write_text(f"[default]\naws_access_key_id={keys[0]}\naws_secret_access_key={keys[1]}\n")


def _break_credentials(connected: object) -> None:
    """Give a client keys that the server does not know any more."""
    connected._request_signer._credentials.access_key = "EXPIREDKEY"  # type: ignore[attr-defined]


def test_temporary_credentials_are_renewed_by_sts(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role's keys are renewed before they end, and when the server says that they have."""
    s3_proxy.harmless()
    use(monkeypatch, s3_proxy.endpoint, None)
    _write_credentials(tmp_path / "credentials", OWNER)
    (tmp_path / "config").write_text(
        f"[profile trainer]\nrole_arn = {ROLE}\nsource_profile = default\nregion = us-east-1\n"
        "duration_seconds = 900\n"  # within the time in which boto3 renews
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "trainer")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_proxy.endpoint)
    folder = open_folder("s3://tests/refusals/rights")
    folder.put("name", b"content")
    first = _sessions(s3_proxy)
    assert folder.read("name") == b"content"
    second = _sessions(s3_proxy)
    s3_proxy.faults.append(Fault(method="GET", status=400, code="ExpiredToken"))
    assert folder.read("name") == b"content"

    assert 0 < first < second < _sessions(s3_proxy)

    config = (tmp_path / "config").read_text().replace(ROLE, f"{ROLE}-unknown")
    (tmp_path / "config").write_text(config)
    monkeypatch.setattr(client, "_connection", client.Connection())
    said = refusal(lambda: folder.read("name"))
    assert "credentials of the AWS profile could not be had: AssumeRole was answered" in said


def _sessions(proxy: FaultyProxy) -> int:
    """Return how often temporary credentials were asked for."""
    return sum(b"Action=AssumeRole" in seen.body for seen in proxy.seen)


def test_a_credential_helper_that_fails_is_not_quoted(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints may be a secret: the message says to run it by hand."""
    use(monkeypatch, s3_server.endpoint, None)
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho a-secret >&2\nexit 1\n")
    helper.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {helper}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    said = refusal(lambda: open_folder("s3://tests/refusals").read("name"))

    assert "the credential helper of the AWS profile failed" in said
    assert "a-secret" not in said


def test_no_secret_is_in_what_is_printed(folder: Folder, s3_server: S3Server) -> None:
    """Of folders, clients and connections."""
    shown = [repr(folder), str(folder), folder.uri, repr(client.connection()), repr(vars(folder))]

    assert not any(secret in text for secret in SECRETS for text in shown)


def test_names_that_look_like_formats_are_repeated_as_they_are() -> None:
    """A key with braces is shown, not filled in."""
    error = botocore.exceptions.ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
    said = explained(error, "get_object", "s3://tests/{code}", None, 1)

    assert isinstance(said, Missing)
    assert str(said).startswith("s3://tests/{code}: there is no such object in the bucket tests")

"""A real S3 server on this machine, SeaweedFS, which tests start, kill and start again."""

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any, Self

import boto3
import pytest
from botocore.config import Config

from infra.deploy.object_store import PORTS, ObjectStore, identity
from infra.s3 import client

OWNER = ("OWNERKEYOFTESTS", "owner+secret/of+tests")
READER = ("READERKEYOFTESTS", "reader+secret/of+tests")
BUCKET = "tests"
IDENTITIES = (
    identity("owner", *OWNER),
    identity("reader", *READER, actions=[f"Read:{BUCKET}", f"List:{BUCKET}"]),
)
ROLE = "arn:aws:iam::000000000000:role/trainer"
ANYTHING = {"Effect": "Allow", "Action": ["s3:*", "sts:*"], "Resource": ["*"]}
ANYBODY = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["sts:AssumeRole"]}
VERSION = {"Version": "2012-10-17"}
ROLES = {
    "sts": {
        "tokenDuration": "15m",
        "maxSessionLength": "1h",
        "issuer": "tests",
        "signingKey": "a2V5IG9mIHRlc3RzLCBvZiBhdCBsZWFzdCAzMiBieXRlcw==",
    },
    "policy": {"defaultEffect": "Deny"},
    "policies": [{"name": "anything", "document": {**VERSION, "Statement": [ANYTHING]}}],
    "roles": [
        {
            "roleName": "trainer",
            "roleArn": ROLE,
            "trustPolicy": {**VERSION, "Statement": [ANYBODY]},
            "attachedPolicies": ["anything"],
        }
    ],
}  # the server gives temporary credentials of this role by STS


class S3Server:
    """A server with a folder of its own; its data outlive a kill.

    Args:
        folder: for its data and its log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_ports(len(PORTS))
        self.endpoint = f"http://127.0.0.1:{self.ports[0]}"
        folder.mkdir(parents=True)
        (folder / "iam.json").write_text(json.dumps(ROLES))
        roles = f"-s3.iam.config={folder / 'iam.json'}"
        self._server = ObjectStore(folder, "127.0.0.1", self.ports, IDENTITIES, [roles])

    def __enter__(self) -> Self:
        self.start()
        self.client().create_bucket(Bucket=BUCKET)
        return self

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._server.start()

    def kill(self) -> None:
        """Take its process away, as a power failure would."""
        self._server.end(signal.SIGKILL)

    def __exit__(self, *error: object) -> None:
        self.kill()  # its data are thrown away: no need to let it finish
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self) -> Any:
        """Return a plain client with all rights, for what a test does behind a program's back."""
        session = boto3.session.Session(*OWNER, region_name="us-east-1")
        retries = {"mode": "standard", "total_max_attempts": 10}
        return session.client("s3", endpoint_url=self.endpoint, config=Config(retries=retries))


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on and that the kernel does not hand out by itself.

    SeaweedFS takes another port in silence if its own is taken, so they are looked for in a range
    of this process's own.
    """
    first, found = 21_000 + 20 * (os.getpid() % 500), list[int]()
    for port in range(first, first + 10_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports from {first} on")


def use(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, credentials: tuple[str, str] | None = OWNER
) -> None:
    """Set the standard variables for a server, and nothing else of AWS, and use a new client."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if credentials is not None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials[1])
    monkeypatch.setattr(client, "_connection", client.Connection())

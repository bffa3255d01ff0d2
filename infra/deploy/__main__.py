"""Start an object store and MLflow on this machine, without Docker: `python -m infra.deploy`.

    pip install -e '.[services]'
    python -m infra.deploy --folder services       # in a terminal of its own; Ctrl-C ends both
    . services/env                                 # in every other: the keys and addresses

The store is SeaweedFS, MLflow's artifacts lie in the bucket. The keys are made at the first start;
they lie in files below --folder that only you may read, and are never printed.
"""

import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infra import cli
from infra.deploy.bucket import make_bucket
from infra.deploy.config import PRESETS, ServicesConfig
from infra.deploy.mlflow_server import mlflow_server
from infra.deploy.object_store import PORTS, ObjectStore, identity
from infra.deploy.private import read_exports, write_exports
from infra.deploy.server import Server, check_ports
from infra.storage import exclusive, local_path
from infra.termination import Termination

ENV = "env"
REGION = "us-east-1"
PERIOD = 0.5  # seconds between two looks at the servers


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal, or until a server ends.

    Raises:
        UsageError: a port is taken, or an option cannot be meant.
        UserError: a server ended.
    """
    config = cli.parse(ServicesConfig, PRESETS, arguments, "infra.deploy", __doc__ or "")
    folder = local_path(config.folder).absolute()
    check_ports(config.host, [*_ports(config), config.mlflow_port])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Termination(), exclusive(folder / "state"), ExitStack() as started:
        variables = _variables(config, folder / ENV)
        servers = [
            started.enter_context(_running(server))
            for server in _servers(config, folder, variables)
        ]
        _say(
            f"Both are up. In another terminal: . {folder / ENV}\n"
            f"s3://{config.bucket} is at {variables['AWS_ENDPOINT_URL_S3']}, "
            f"MLflow at {variables['MLFLOW_TRACKING_URI']}. Ctrl-C ends both."
        )
        while True:
            for server in servers:
                server.check()
            time.sleep(PERIOD)


def _servers(
    config: ServicesConfig, folder: Path, variables: Mapping[str, str]
) -> Iterator[Server]:
    """Yield the store and then MLflow, which are started one after the other."""
    key, secret = variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]
    owner = identity("owner", key, secret)
    yield ObjectStore(folder / "store", config.host, _ports(config), [owner])
    make_bucket(config.bucket, variables)
    artifacts = f"s3://{config.bucket}/mlflow"
    yield mlflow_server(folder / "mlflow", config.host, config.mlflow_port, artifacts, variables)


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    """Start a server; it ends with the block."""
    _say(f"Starting {server.name}; it writes to {server.folder}")
    try:
        server.start()
        yield server
    finally:
        server.end()


def _variables(config: ServicesConfig, path: Path) -> dict[str, str]:
    """Return the variables of a client, and write them; keys that were made before stay."""
    before = read_exports(path)
    made = {
        "AWS_ACCESS_KEY_ID": f"LP{secrets.token_hex(9).upper()}",
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
    }
    variables = {
        "AWS_ENDPOINT_URL_S3": f"http://{config.host}:{config.port}",
        "AWS_REGION": REGION,
        **{name: before.get(name, value) for name, value in made.items()},
        "MLFLOW_TRACKING_URI": f"http://{config.host}:{config.mlflow_port}",
    }
    write_exports(path, variables, "made by python -m infra.deploy; it holds a secret key")
    return variables


def _ports(config: ServicesConfig) -> range:
    return range(config.port, config.port + len(PORTS))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    cli.run(main)

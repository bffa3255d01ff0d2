"""MLflow's server, whose artifacts lie in a bucket."""

import sys
from collections.abc import Mapping
from pathlib import Path

from infra.deploy.server import Server

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a dozen processes that nothing here uses
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def mlflow_server(
    folder: Path, host: str, port: int, artifacts: str, variables: Mapping[str, str] | None = None
) -> Server:
    """Return the server; it is not started.

    Clients send artifacts to it, and it puts them where ``artifacts`` says: only the server needs
    the keys of a bucket for that.

    Args:
        folder: for its database (sqlite) and its log.
        host: the address that it listens on.
        port: the port that it listens on.
        artifacts: folder, or ``s3://BUCKET/PREFIX``.
        variables: of its environment: the keys of the bucket.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return Server(
        "the MLflow server",
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", host, "--port", str(port)),
            # Without these it answers neither clients that call it by a name, nor its own pages in
            # a browser on another machine.
            *("--allowed-hosts", f"{host}:{port},localhost:{port}"),
            *("--cors-allowed-origins", f"http://{host}:{port}"),
            *("--backend-store-uri", f"sqlite:///{folder.absolute() / 'mlflow.db'}"),
            *("--artifacts-destination", artifacts),
        ],
        folder,
        f"http://{host}:{port}/health",
        variables={**SETTINGS, **(variables or {})},
    )

"""What `python -m infra.deploy` is told."""

import re
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from infra.config import STRICT

Port = Annotated[int, Field(ge=1, le=65_526)]  # the nine after it are ports too


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ServicesConfig:
    """Where the services keep their data and listen."""

    folder: str = "services"
    """For data, logs and keys; a later start with the same folder goes on with them."""
    host: str = "127.0.0.1"
    """Address of this machine. Only S3 asks for a key, so let trusted machines alone reach it."""
    port: Port = 8333
    """Port of S3; the nine after it are the store's own."""
    mlflow_port: Port = 5000
    """Port of MLflow."""
    bucket: str = "latent-pmrf"
    """The bucket that is made if it is not there; MLflow's artifacts lie in it below mlflow/."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", self.bucket):
            raise ValueError(
                f"bucket {self.bucket!r}: 3 to 63 small letters, digits and hyphens are allowed"
            )
        if self.host in ("", "0.0.0.0", "::"):
            raise ValueError(f"host {self.host!r}: give the one address by which others reach it")
        if self.port <= self.mlflow_port < self.port + 10:
            raise ValueError(
                f"mlflow_port {self.mlflow_port}: the ports from {self.port} to {self.port + 9} "
                "are the object store's"
            )


PRESETS = {"local": ServicesConfig()}

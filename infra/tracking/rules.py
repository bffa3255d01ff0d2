"""What MLflow accepts: store URIs, names, lengths; and the settings under which it keeps quiet."""

import hashlib
import io
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SQLITE = "sqlite:///"
DEFAULT_URI = SQLITE + "mlflow.db"
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
MAX_POINTS = 1000  # per request, MLflow's limit
MAX_PAIRS = 100  # parameters or tags per request, MLflow's limit
MAX_KEY = 250  # characters, MLflow's limit
MAX_VALUE = 500  # characters of a parameter or tag: what every version takes and a page can show
THUMBNAIL = 1536  # pixels of the longer side; MLflow's own 256 make a grid of faces illegible
MAX_DIGEST = 36  # characters of a data set's digest, MLflow's limit


def tracking_uri() -> str:
    """Return the store that MLFLOW_TRACKING_URI names, or the default; sqlite paths made absolute.

    Raises:
        UsageError: no store of MLflow's goes by such a URI.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    scheme = re.split(r"[+:]", uri)[0] if ":" in uri else uri
    plugins = tuple(plugin.name for plugin in entry_points(group="mlflow.tracking_store"))
    if scheme not in {*SCHEMES, *plugins} or (scheme == "sqlite" and not uri.startswith(SQLITE)):
        raise UsageError(
            f"MLFLOW_TRACKING_URI={without_password(uri)}: not a tracking store; allowed are "
            f"sqlite:///FILE.db, http(s)://HOST:PORT, or a database URI ({', '.join(SCHEMES)}). "
            "MLflow 3.17 no longer writes to plain folders"
        )
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute()) if scheme == "sqlite" else uri


def keep_quiet() -> None:
    """Set what MLflow reads from the environment, where the user has not: before it is imported.

    No telemetry, no chatter (what goes wrong we say ourselves, in one line), and one quick attempt
    per request, because repeating is our own loop's work.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # Not less: a server answers for a big file only once it has stored it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    for name in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def measures_system() -> bool:
    """Tell whether MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is not false."""
    return os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() not in ("false", "0")


def safe_key(key: str) -> str:
    """Turn any name into one that MLflow takes; a good name stays as it is.

    Raises:
        ValueError: nothing of the name is left.
    """
    plain = re.sub(r"[^A-Za-z0-9_.\-:/ ]", "_", key)
    safe = "/".join(part for part in plain.split("/") if part not in {"", ".", ".."})
    if not safe:
        raise ValueError(f"{key!r} has no character that a name in MLflow may have")
    if safe.startswith(".."):
        safe = "_" + safe
    if len(safe) > MAX_KEY:
        safe = f"{safe[: MAX_KEY - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return safe


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested settings into flat texts: ``{"a": {"b": 1}}`` becomes ``{"a.b": "1"}``."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[safe_key(f"{prefix}{key}")] = cut(text)
    return flat


def cut(text: str) -> str:
    """Shorten a text that MLflow would refuse, and say so in it."""
    if len(text) <= MAX_VALUE:
        return text
    note = f"... (cut from {len(text)} characters)"
    return text[: MAX_VALUE - len(note)] + note


def without_password(text: str) -> str:
    """Take user and password out of the URIs in a text."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def grid_files(key: str, picture: "Image", step: int, created: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of a picture and its smaller copy, as MLflow's image grid wants them.

    The names follow from the arguments: a picture recorded again takes the place of the first.

    Args:
        key: name of the picture; characters that break MLflow's pages become underscores.
        picture: in full size.
        step: of the training clock.
        created: when the run began, in milliseconds since 1970.
    """
    name = re.sub(r"[^A-Za-z0-9_.\-~ ]", "_", key.replace("/", "~"))  # a tilde is shown as a slash
    identifier = uuid.uuid5(uuid.NAMESPACE_URL, f"{name}/{step}")
    stem = f"images/{name}+step+{step}+timestamp+{created}+{identifier}"
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", compress_level=1)
    yield f"{stem}.png", encoded.getvalue()
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=90)
    yield f"{stem}+compressed.webp", encoded.getvalue()

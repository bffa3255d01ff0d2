"""The demo page over a model that is quick and can be held up, and over HTTP or not."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from infra.errors import UserError
from models.bundle import write_bundle
from pipelines.demo.app import Facts, build
from pipelines.demo.config import DemoConfig
from pipelines.demo.job_queue import JobQueue, Restoring, Result
from pipelines.demo.options import Options
from pipelines.demo.server import listen, server, url
from tests.conftest import PATIENCE
from tests.support.tiny_bundle import bundle

FACTS = Facts(
    "A model that inverts, on this machine's CPU",
    size=32,
    defaults={"steps": 25, "strength": 1.0, "seed": 0, "samples": 1},
)


class Inverting:
    """A model whose restored picture is the negative; it works while `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.given: list[tuple[bytes, Options]] = []

    def __call__(
        self, photograph: bytes, options: Options, advance: Callable[[float], None]
    ) -> Result:
        """Invert a photograph; halfway it waits for `go`."""
        self.given.append((photograph, options))
        advance(0.5)
        assert self.go.wait(PATIENCE)
        if photograph == b"defect":
            raise ZeroDivisionError("a defect")
        try:
            image = Image.open(BytesIO(photograph)).convert("RGB")
        except UnidentifiedImageError as error:
            raise UserError("this is no image; send a PNG or a JPEG") from error
        files = {"input.png": png(image), "restored.png": png(ImageOps.invert(image))}
        return Result({**files, "restored.json": b"{}"}, {"facts": {}, "warnings": []})


def png(image: Image.Image) -> bytes:
    """Encode a picture."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def queued(
    restoring: Restoring, facts: Facts = FACTS, **fields: Any
) -> Iterator[tuple[JobQueue, ASGIApp]]:
    """Start a queue and build the page over it; ``fields`` are the configuration's."""
    config = DemoConfig(**fields)
    queue = JobQueue(restoring, config)
    queue.start()
    try:
        yield queue, build(config, queue, facts)
    finally:
        queue.close()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve a page to browsers; yields its address."""
    with listen("127.0.0.1", 0) as listener:
        running = server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield url(listener)
        finally:
            running.should_exit = True
            thread.join()


class Client(TestClient):
    """What talks to a page without a network, as a program of this machine does."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, base_url="http://127.0.0.1:7860")

    def sent(self, photograph: bytes, **options: Any) -> str:
        """Send a photograph that is taken; returns the job's address."""
        answer = self.post("/restore", params=options, content=photograph)
        assert answer.status_code == 202, answer.text
        return str(answer.headers["Location"])

    def awaited(self, job: str, *states: str) -> dict[str, Any]:
        """Ask after a job until it is in one of some states, by default at its end."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found: dict[str, Any] = self.get(job).json()
            if found["state"] in (states or ("done", "refused", "failed")):
                return found
            time.sleep(0.01)
        raise TimeoutError(job)


def tiny_bundle(folder: Path, alignment: str = "any") -> str:
    """Write a bundle of tiny networks with random weights, for faces of 32 pixels."""
    write_bundle(folder, bundle(alignment=alignment))
    return str(folder)

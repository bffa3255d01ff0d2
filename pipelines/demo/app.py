"""The page's requests: a photograph comes in, its job is asked after, its pictures are fetched.

    GET    /                     the page; /page.css and /page.js belong to it
    GET    /about.json           the model, and what is taken
    GET    /examples/NAME        face.png and photograph.png, to try
    POST   /restore?steps=25     the file as the body => 202 and {"job": NAME}
    GET    /jobs/NAME            how far it is; when it is done, which files there are
    GET    /jobs/NAME/FILE       such as restored.png
    DELETE /jobs/NAME            forget it

An error is {"error": SENTENCE}.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from infra.errors import UsageError
from pipelines.demo.config import DemoConfig
from pipelines.demo.examples import example_face, example_photograph
from pipelines.demo.guard import Guard
from pipelines.demo.job_queue import Job, JobQueue, QueueFull
from pipelines.demo.options import options_of

HERE = Path(__file__).parent
PAGE = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
TYPES = {".png": "image/png", ".json": "application/json"}
UPLOAD_SECONDS = 120.0  # in which a photograph must have come: 32 MB at 2 Mbit/s
RETRY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """What the page says of a model."""

    described: str
    """The model and what it runs on, in a sentence."""
    size: int
    """Side of a face in pixels."""
    defaults: Mapping[str, Any]
    """What the controls begin with, by their names."""


def build(config: DemoConfig, queue: JobQueue, model: Facts) -> ASGIApp:
    """Return the program that answers requests, guarded."""
    max_bytes = int(config.max_mb * 1e6)
    about = {"model": model.described, "defaults": dict(model.defaults), "max_bytes": max_bytes}
    examples = {"face.png": example_face(model.size), "photograph.png": example_photograph()}
    return Guard(Page(queue, about, examples, max_bytes).app(), config.names)


@dataclass(frozen=True, slots=True)
class Page:
    """What the page serves.

    Args:
        queue: of the photographs.
        about: the model and the limits, as JSON values.
        examples: PNG files to try, by name.
        max_bytes: the largest photograph.
    """

    queue: JobQueue
    about: Mapping[str, Any]
    examples: Mapping[str, bytes]
    max_bytes: int

    def app(self) -> Starlette:
        """Return the program that answers requests."""
        routes = [
            Route(f"/{name}", _file(name or "page.html", kind)) for name, kind in PAGE.items()
        ]
        routes += [
            Route("/about.json", self.show_about),
            Route("/examples/{file}", self.show_example),
            Route("/restore", self.restore, methods=["POST"]),
            Route("/jobs/{job}", self.show_job, methods=["GET"]),
            Route("/jobs/{job}", self.forget, methods=["DELETE"]),
            Route("/jobs/{job}/{file}", self.show_file),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _sentence})

    async def show_about(self, request: Request) -> Response:
        """Say which model restores, and what is taken."""
        return JSONResponse(self.about)

    async def show_example(self, request: Request) -> Response:
        """Return a photograph to try."""
        return _found(self.examples, request)

    async def restore(self, request: Request) -> Response:
        """Take a photograph in; its place is kept from the first byte on."""
        try:
            options = options_of(request.query_params)
        except UsageError as error:
            raise HTTPException(422, str(error)) from error
        try:
            with self.queue.reserved():
                job = self.queue.submit(await self._body(request), options)
        except QueueFull:
            detail = "too many photographs are waiting; try again in a moment"
            raise HTTPException(503, detail, {"Retry-After": str(RETRY_SECONDS)}) from None
        where = {"Location": f"/jobs/{job.name}"}
        return JSONResponse({"job": job.name}, status_code=202, headers=where)

    async def show_job(self, request: Request) -> Response:
        """Say how far a job is."""
        job = self._job(request)
        return JSONResponse(
            {
                "state": job.state,
                "before": self.queue.before(job),
                "progress": job.progress,
                "seconds": job.seconds,
                "error": job.error,
                "files": {} if job.result is None else _sizes(job.result.files),
                "summary": {} if job.result is None else job.result.summary,
            }
        )

    async def show_file(self, request: Request) -> Response:
        """Return a picture, or the JSON."""
        result = self._job(request).result
        return _found({} if result is None else result.files, request)

    async def forget(self, request: Request) -> Response:
        """Forget a job and all that belongs to it."""
        self.queue.forget(self._job(request).name)
        return Response(status_code=204)

    def _job(self, request: Request) -> Job:
        job = self.queue.find(request.path_params["job"])
        if job is None:
            raise HTTPException(404, "this result was forgotten; restore the photograph again")
        return job

    async def _body(self, request: Request) -> bytes:
        """Read a photograph; what it claims to be long is believed only if it is too long."""
        too_long = HTTPException(
            413, f"the photograph is larger than {self.max_bytes / 1e6:g} MB, which is the limit"
        )
        announced = request.headers.get("content-length", "0")
        if int(announced) > self.max_bytes:
            raise too_long
        data = bytearray()
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for part in request.stream():
                    data += part
                    if len(data) > self.max_bytes:
                        raise too_long
        except TimeoutError:
            said = f"the photograph did not come within {UPLOAD_SECONDS:g} seconds"
            raise HTTPException(408, said) from None
        except ClientDisconnect:
            raise HTTPException(400, "the photograph did not come to its end") from None
        if not data:
            raise HTTPException(422, "there is no photograph in the request; send it as the body")
        return bytes(data)


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    content = (HERE / name).read_bytes()
    return lambda _: Response(content, media_type=kind)


def _found(files: Mapping[str, bytes], request: Request) -> Response:
    name = request.path_params["file"]
    if name not in files:
        raise HTTPException(404, f"{name}: there is no such file, or not yet")
    return Response(files[name], media_type=TYPES[Path(name).suffix])


def _sizes(files: Mapping[str, bytes]) -> dict[str, int]:
    return {name: len(content) for name, content in files.items()}


def _sentence(request: Request, error: Exception) -> Response:
    """Answer with what is wrong, in the one form that errors have."""
    assert isinstance(error, HTTPException)
    said = error.detail
    if error.status_code == 404 and said == "Not Found":
        said = f"{request.url.path}: there is nothing here"
    elif error.status_code == 405:
        said = f"{request.url.path}: takes no {request.method}"
    return JSONResponse({"error": said}, status_code=error.status_code, headers=error.headers)

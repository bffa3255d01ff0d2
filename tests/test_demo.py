"""The demo page's requests: what it takes, what it refuses and in which words, what it keeps."""

import asyncio
import json
import re
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from starlette.types import ASGIApp, Message

from infra.errors import UsageError
from pipelines.demo import __main__ as demo
from pipelines.demo import app as pages
from pipelines.demo.config import DemoConfig
from pipelines.demo.guard import HEADERS
from pipelines.demo.job_queue import JobQueue, Result
from pipelines.demo.options import Options
from pipelines.demo.server import listen, url
from pipelines.jobs.page import FAINT, INK, KEPT
from tests.conftest import PATIENCE, picture
from tests.support.demo_pages import Client, Inverting, png, queued

PHOTOGRAPH = png(picture(1, 48, 40))


@pytest.fixture
def model() -> Iterator[Inverting]:
    """Give a model; whatever it is held up by ends with the test."""
    made = Inverting()
    yield made
    made.go.set()


@pytest.fixture
def page(model: Inverting) -> Iterator[Client]:
    """Serve the page in this process, with two places and photographs of at most 100 kB."""
    with queued(model, places=2, max_mb=0.1) as (_, app):
        yield Client(app)


def test_a_photograph_comes_back_restored(page: Client, model: Inverting) -> None:
    """A job has a name at once, and its pictures when it is done; the bytes are those sent."""
    job = page.sent(PHOTOGRAPH, steps=3, strength=0.5, seed=7, samples=2, name="a/b/Old photo.jpeg")
    found = page.awaited(job)
    restored = page.get(f"{job}/restored.png")

    assert found["state"] == "done"
    assert found["progress"] == 0.5
    assert found["files"]["restored.png"] == len(restored.content)
    assert restored.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(restored.content)).size == (48, 40)
    sent, options = model.given[0]
    assert sent == PHOTOGRAPH
    assert options.key == "Old photo"
    assert (options.steps, options.strength, options.seed, options.samples) == (3, 0.5, 7, 2)


def test_photographs_are_restored_in_order_and_say_how_many_are_before(
    page: Client, model: Inverting
) -> None:
    """The present one counts; a photograph that is forgotten while it waits is not restored."""
    model.go.clear()
    first = page.sent(PHOTOGRAPH)
    assert page.awaited(first, "running")["before"] == 0
    second, third = page.sent(PHOTOGRAPH, seed=2), page.sent(PHOTOGRAPH, seed=3)

    assert [page.get(job).json()["before"] for job in (second, third)] == [1, 2]
    assert page.delete(second).status_code == 204
    assert page.get(third).json()["before"] == 1
    model.go.set()
    page.awaited(third)
    assert [options.seed for _, options in model.given] == [None, 3]


def test_a_full_queue_says_so_and_when_to_come_again(page: Client, model: Inverting) -> None:
    """503 with a sentence and Retry-After, before the photograph is read; later it is taken."""
    model.go.clear()
    page.awaited(page.sent(PHOTOGRAPH), "running")
    waiting = [page.sent(PHOTOGRAPH), page.sent(PHOTOGRAPH)]
    refused = page.post("/restore", content=PHOTOGRAPH)

    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "10"
    assert refused.json() == {"error": "too many photographs are waiting; try again in a moment"}
    model.go.set()
    page.awaited(waiting[-1])
    page.awaited(page.sent(PHOTOGRAPH))


@pytest.mark.parametrize("announced", [True, False])
def test_a_photograph_that_is_too_large_is_refused(
    page: Client, model: Inverting, announced: bool
) -> None:
    """413, by the length that a request claims, and by the bytes where it claims none."""
    parts = [b"x" * 60_000] * 2
    body = b"".join(parts) if announced else iter(parts)
    refused = page.post("/restore", content=body)

    assert refused.status_code == 413
    assert refused.json()["error"] == "the photograph is larger than 0.1 MB, which is the limit"
    assert model.given == []


def test_a_photograph_that_does_not_come_gives_its_place_back(
    model: Inverting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender that is too slow is told so; its place is another's then."""
    monkeypatch.setattr(pages, "UPLOAD_SECONDS", 0.01)
    with queued(model, places=1) as (_, app):
        for _ in range(2):
            status, said = asyncio.run(_posted_silence(app))
            assert (status, said["error"]) == (
                408,
                "the photograph did not come within 0.01 seconds",
            )


async def _posted_silence(app: ASGIApp) -> tuple[int, Any]:
    """Begin to send a photograph of which no byte comes; returns the status and what is said."""
    scope = {"type": "http", "method": "POST", "path": "/restore", "query_string": b""}
    answer: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        answer.append(message)

    await app(scope | {"headers": [(b"host", b"localhost")]}, receive, send)
    return answer[0]["status"], json.loads(answer[1]["body"])


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("steps=0", r"steps '0': .*greater than or equal to 1"),
        ("steps=1000", r"steps '1000': .*less than or equal to 100"),
        ("steps=many", r"steps 'many': .*integer"),
        ("strength=1.5", r"strength '1.5': .*less than or equal to 1"),
        ("strength=nan", r"strength 'nan': .*finite.*"),
        ("seed=-1", r"seed '-1': .*greater than or equal to 0"),
        ("samples=9", r"samples '9': .*less than or equal to 8"),
        ("whole=perhaps", r"whole 'perhaps': .*boolean.*"),
        ("faces=2", r"faces '2': .*'largest' or 'all'"),
        ("colour=red", r"colour 'red': .*'off', 'mean' or 'low-pass'"),
        ("name=", r"name '': .*at least 1 character"),
        ("step=3", r"unknown keys: step; valid: name, steps, .*"),
        ("seed=1&seed=2", r"seed: given twice; give each option once"),
    ],
)
def test_options_are_checked(page: Client, model: Inverting, query: str, said: str) -> None:
    """422, with the option, its value and what is allowed."""
    refused = page.post(f"/restore?{query}", content=PHOTOGRAPH)

    assert refused.status_code == 422
    assert re.fullmatch(said, refused.json()["error"]), refused.text
    assert model.given == []


def test_the_program_says_itself_why_there_is_no_result(
    page: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A photograph that cannot be used is refused by name; a defect is logged and said."""
    refused = page.awaited(page.sent(b"no image"))
    failed = page.awaited(page.sent(b"defect"))
    empty = page.post("/restore", content=b"")

    assert (refused["state"], refused["error"]) == (
        "refused",
        "this is no image; send a PNG or a JPEG",
    )
    assert failed["state"] == "failed"
    assert failed["error"].startswith("the program failed (ZeroDivisionError: a defect)")
    assert "Traceback" in caplog.text
    assert (empty.status_code, empty.json()["error"]) == (
        422,
        "there is no photograph in the request; send it as the body",
    )
    assert page.awaited(page.sent(PHOTOGRAPH))["state"] == "done"


def test_what_is_not_there_is_said(page: Client) -> None:
    """A forgotten result, a file that a job has not, an address and a method of nothing."""
    job = page.sent(PHOTOGRAPH)
    page.awaited(job)

    assert page.get(f"{job}/spread.png").json()["error"].startswith("spread.png: there is no such")
    assert page.get("/jobs/other").json()["error"].startswith("this result was forgotten")
    assert page.get("/etc/passwd").json() == {"error": "/etc/passwd: there is nothing here"}
    assert page.get("/restore").json() == {"error": "/restore: takes no GET"}
    assert page.delete(job).status_code == 204
    assert page.get(f"{job}/restored.png").status_code == 404


def test_nobody_else_may_use_the_page(page: Client, model: Inverting) -> None:
    """Another page of the browser cannot post; a foreign name for this address leads nowhere."""
    theirs = {"Origin": "https://elsewhere.example"}
    posted = page.post("/restore", content=PHOTOGRAPH, headers=theirs)
    rebound = page.get("/", headers={"Host": "elsewhere.example:7860"})

    assert (posted.status_code, rebound.status_code) == (403, 403)
    assert posted.json()["error"] == "a page of 'https://elsewhere.example' may not use this one"
    assert "start the page with --names elsewhere.example" in rebound.json()["error"]
    for other in ("null", "http://127.0.0.1:7861", "http://localhost:7860"):
        headers = {"Origin": other}
        assert page.post("/restore", content=PHOTOGRAPH, headers=headers).status_code == 403
    assert model.given == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost:7860", 200),
        ("192.168.1.5:7860", 200),
        ("[::1]:7860", 200),
        ("GPU-box", 200),
        ("other", 403),
        ("", 403),
        ("[", 403),
    ],
)
def test_the_page_answers_to_addresses_and_given_names(
    model: Inverting, host: str, status: int
) -> None:
    """An address cannot be made to lead elsewhere; the remedy that a refusal names helps."""
    with queued(model, names=("gpu-BOX",)) as (_, app):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert Client(app).get("/", headers=headers).status_code == status


def test_every_answer_forbids_what_the_page_does_not_need(page: Client) -> None:
    """Refusals too: no foreign script, no frame around it, no copy in a browser's cache."""
    answers = [page.get("/"), page.get("/nothing"), page.get("/", headers={"Host": "other"})]

    for answer in answers:
        assert HEADERS.items() <= {name: answer.headers[name.lower()] for name in HEADERS}.items()


def test_results_are_forgotten_in_time(model: Inverting) -> None:
    """After some minutes; the photograph already when its job ends."""
    now = [0.0]
    queue = JobQueue(model, DemoConfig(keep_minutes=2), clock=lambda: now[0])
    with queue.reserved():
        job = queue.submit(PHOTOGRAPH, Options())
    queue.start()
    while job.ended is None:
        threading.Event().wait(0.01)
    now[0] = 119

    assert queue.find(job.name) is job
    assert job.photograph == b""
    now[0] = 120
    assert queue.find(job.name) is None
    queue.close()


def test_results_are_forgotten_though_nobody_asks(model: Inverting) -> None:
    """The memory is given back while the page is idle."""
    kept: list[weakref.ref[Any]] = []

    def restore(*arguments: Any) -> Result:
        made = model(*arguments)
        files = Files(made.files)
        kept.append(weakref.ref(files))
        return Result(files, made.summary)

    with queued(restore, keep_minutes=1e-4) as (queue, _):
        with queue.reserved():
            queue.submit(PHOTOGRAPH, Options())
        end = time.monotonic() + PATIENCE
        while not kept or kept[0]() is not None:
            assert time.monotonic() < end
            time.sleep(0.01)


class Files(dict[str, bytes]):
    """Files whose end can be noticed."""


def test_results_are_bounded_in_bytes(model: Inverting) -> None:
    """The oldest go first; the newest stays however large it is."""
    result = sum(map(len, model(PHOTOGRAPH, Options(), lambda _: None).files.values()))
    with queued(model, keep_mb=2.5 * result / 1e6) as (_, app):
        page = Client(app)
        jobs = [page.sent(PHOTOGRAPH) for _ in range(3)]
        page.awaited(jobs[-1])
        assert [page.get(job).status_code for job in jobs] == [404, 200, 200]
        large = page.sent(png(picture(2, 200, 200)))
        assert page.awaited(large)["state"] == "done"
        assert [page.get(job).status_code for job in jobs] == [404, 404, 404]


def test_nothing_is_written_to_a_disk(page: Client) -> None:
    """From the first byte of an upload to the last of a download no file is opened for writing."""
    opened: list[Any] = []
    watched = [True]

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if watched[0] and event == "open" and isinstance(arguments[0], str):
            path, mode, _ = arguments
            if set(str(mode)) & set("wax+"):
                opened.append(path)

    sys.addaudithook(note)  # a hook stays; it is idle afterwards
    job = page.sent(PHOTOGRAPH)
    page.awaited(job)
    page.get(f"{job}/restored.png")
    page.delete(job)
    watched[0] = False

    assert opened == []


class _Loads(HTMLParser):
    """Collects what a page loads, and the ids that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_the_page_loads_its_own_files_alone(page: Client) -> None:
    """The markup names two files of ours, and the script only elements that are there."""
    loads = _Loads()
    loads.feed(page.get("/").text)
    script = page.get("/page.js")

    assert loads.loads == ["data:,", "/page.css", "/page.js"]
    assert all(page.get(name).status_code == 200 for name in loads.loads[1:])
    assert set(re.findall(r'at\("([\w-]+)"\)', script.text)) <= set(loads.ids)
    assert script.headers["content-type"].startswith("text/javascript")
    assert "http" not in page.get("/").text + script.text + page.get("/page.css").text


def test_the_page_looks_like_the_reports(page: Client) -> None:
    """It has their ink, and their green."""
    style = page.get("/page.css").text

    for colour in (INK, FAINT, KEPT):
        assert colour in style


def test_the_examples_are_pictures_of_the_models_size(page: Client) -> None:
    """A face for a model of aligned faces, and a whole photograph."""
    sizes = {}
    for name in ("face.png", "photograph.png"):
        answer = page.get(f"/examples/{name}")
        sizes[name] = Image.open(BytesIO(answer.content)).size

    assert sizes == {"face.png": (32, 32), "photograph.png": (512, 512)}


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded() -> None:
    """So is an address that is not ours; a port of 0 is a free one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--model", "/no/such/model", "--port", str(port)]
        with pytest.raises(UsageError, match=f"--port {port}: another program listens there"):
            demo.main(arguments)
    with pytest.raises(UsageError, match=r"--host 192.0.2.1 .*cannot listen there"):
        listen("192.0.2.1", 0)
    with listen("127.0.0.1", 0) as listener:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url(listener))


def _luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    digits = colour.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    levels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("night", [False, True])
def test_text_stands_out_by_day_and_by_night(page: Client, night: bool) -> None:
    """Contrast is at least 4.5 of text, and 3 of what frames a control (WCAG 2.2, level AA)."""
    schemes = re.findall(r":root \{(.*?)\}", page.get("/page.css").text, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", schemes[night]))

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((_luminance(colours[one]), _luminance(colours[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for ground in ("paper", "raised"):
        for text in ("ink", "soft", "bad", "good"):
            assert contrast(text, ground) >= 4.5, (text, ground)
        assert contrast("edge", ground) >= 3, ground
    assert contrast("on-good", "good") >= 4.5
    assert contrast("soft", "dull") >= 4.5

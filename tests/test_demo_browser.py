"""The demo page in a headless Chromium: what a user sees, by mouse, by keyboard and on a phone."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from pipelines.demo.config import DemoConfig
from pipelines.demo.restoring import Restoration
from pipelines.restore.config import RestoreRule
from tests.conftest import PATIENCE, picture
from tests.support.browsers import chromium, needs_chromium
from tests.support.demo_pages import Inverting, png, queued, served, tiny_bundle

pytestmark = needs_chromium
PHOTOGRAPH = {"name": "Old photo.png", "mimeType": "image/png", "buffer": png(picture(3, 32, 32))}
DROP = """({ name, base64 }) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  const how = { dataTransfer, bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("drop", how));
}"""
UNNAMED = """() => [...document.querySelectorAll("input, select, button, progress, a")]
  .filter((one) => !one.labels?.length && !one.ariaLabel && !one.textContent.trim())
  .map((one) => one.outerHTML)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the browser once."""
    expect.set_options(timeout=1000 * PATIENCE)
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def model() -> Inverting:
    """Give a model that a test can hold up."""
    return Inverting()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory, model: Inverting) -> Iterator[list[str]]:
    """Serve a page over tiny networks, and one over the model that can be held up."""
    rule = RestoreRule(model=tiny_bundle(tmp_path_factory.mktemp("bundle")), device="cpu", steps=2)
    networks = Restoration(DemoConfig(rule=rule))
    with ExitStack() as opened:
        yield [
            opened.enter_context(served(opened.enter_context(page)[1]))
            for page in (queued(networks, networks.facts), queued(model, max_mb=1))
        ]
        model.go.set()


class Visit:
    """A user's visit, which notes every request and everything that the browser complains of."""

    def __init__(self, browser: Browser, address: str, **kind: Any) -> None:
        self.context = browser.new_context(**kind)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()


def state(page: Page, name: str) -> None:
    """Wait until the page is in a state."""
    expect(page.locator("html")).to_have_attribute("data-state", name)


def test_a_photograph_is_restored_compared_and_downloaded(
    browser: Browser, addresses: list[str]
) -> None:
    """From a chosen file to the PNG and its JSON; no request leaves the page's own server."""
    visit = Visit(browser, addresses[0])
    with visit as page:
        expect(page.locator("#about")).to_contain_text("faces of 32 x 32 pixels, on a CPU")
        expect(page.get_by_label("Steps")).to_have_value("2")
        expect(page.get_by_role("button", name="Restore")).to_be_disabled()
        page.set_input_files("#file", files=[PHOTOGRAPH])
        page.get_by_label("Samples").fill("2")
        page.get_by_role("button", name="Restore").click()
        state(page, "done")

        line = page.get_by_label("Where the photograph as it was ends")
        expect(line).to_be_focused()
        for key, value in (("ArrowRight", "51"), ("Home", "0"), ("ArrowLeft", "0"), ("End", "100")):
            page.keyboard.press(key)
            expect(line).to_have_value(value)
        expect(line).to_have_attribute("aria-valuetext", "100 % as it was")
        shown = page.locator("#after")
        for view in ("restored", "posterior mean", "spread", "sample 1"):
            page.get_by_label(re.compile(f"^{view}( map)?$")).check()
            expect(shown).to_have_attribute("src", re.compile(f"/{view.replace(' ', '-')}.png$"))
            assert shown.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 32
        with page.expect_download() as picture_file:
            page.get_by_role("link", name="Download PNG").click()
        with page.expect_download() as record:
            page.get_by_role("link", name="Download JSON").click()

        assert picture_file.value.suggested_filename == "Old photo.png"
        assert Path(picture_file.value.path()).read_bytes().startswith(b"\x89PNG")
        assert record.value.suggested_filename == "Old photo.json"
        made = json.loads(Path(record.value.path()).read_text())
        assert (made["key"], made["settings"]["samples"]) == ("Old photo", 2)
        assert page.evaluate(UNNAMED) == []
        assert len(visit.requests) > 5
        assert {url for url in visit.requests if not url.startswith(("blob:", "data:"))} == {
            url for url in visit.requests if url.startswith(addresses[0])
        }
        assert visit.complaints == []


def test_waiting_cancelling_dropping_and_refusals(
    browser: Browser, addresses: list[str], model: Inverting
) -> None:
    """The page says how many are before it, gives up when told to, and repeats the reasons."""
    first, second = (Visit(browser, addresses[1]) for _ in range(2))
    with first as one, second as other:
        model.go.clear()
        for page in (one, other):
            page.get_by_role("button", name="Use the example").click()
            state(page, "chosen")
            page.get_by_role("button", name="Restore").click()
            state(page, "busy")
            shown = "Restoring" if page is one else "Waiting: 1 before this one"
            expect(page.locator("#status")).to_contain_text(shown)
        expect(one.get_by_role("progressbar")).to_have_attribute("value", "0.5")
        other.get_by_role("button", name="Cancel").click()
        state(other, "chosen")
        model.go.set()
        state(one, "done")

        other.evaluate(DROP, {"name": "notes.txt", "base64": "bm90ZXM="})
        expect(other.locator("#chosen-name")).to_have_text("notes.txt")
        other.get_by_role("button", name="Restore").click()
        expect(other.get_by_role("alert")).to_have_text("this is no image; send a PNG or a JPEG")
        large = {"name": "a.png", "mimeType": "image/png", "buffer": b"x" * 1_200_000}
        other.set_input_files("#file", files=[large])
        expect(other.get_by_role("alert")).to_have_text("a.png has 1.2 MB; at most 1 MB are taken")
        expect(other.get_by_role("button", name="Restore")).to_be_disabled()
        assert len(model.given) == 2
    assert first.complaints == second.complaints == []


def test_a_phone_shows_it_all(browser: Browser, addresses: list[str]) -> None:
    """At 360 pixels nothing is wider than the screen; a finger moves the line."""
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with Visit(browser, addresses[1], **phone, color_scheme="dark") as page:
        page.get_by_label("A whole photograph").check()
        expect(page.get_by_label("Faces")).to_be_enabled()
        page.get_by_role("button", name="Use the example").tap()
        expect(page.locator("#chosen-name")).to_have_text("photograph.png")
        widths = [page.evaluate("document.documentElement.scrollWidth")]
        page.get_by_role("button", name="Restore").tap()
        state(page, "done")
        widths.append(page.evaluate("document.documentElement.scrollWidth"))
        box = page.locator("#compare").bounding_box()
        assert box is not None
        page.touchscreen.tap(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        expect(page.locator("#split")).to_have_value("25")

    assert widths == [360, 360]

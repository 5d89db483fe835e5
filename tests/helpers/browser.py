"""The page in a real chromium: one server, one browser, and the actions of a person."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.ui_server import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no browser: install Debian's chromium (make test does, as root)", allow_module_level=True)
playwright_api = pytest.importorskip("playwright.sync_api")

SCREENSHOTS = ROOT / "screenshots"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LONG = 240_000  # milliseconds; a training starts in ten seconds on an idle machine
SKIP = {"__type__": "update"}


class Story:
    """A server, a browser and a page that goes through the whole story, and records of what must never happen."""

    def __init__(self, server: Server, browser):
        self.server, self.browser = server, browser
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.page = self.open()

    def open(self, locale: str = "en-US", dark: bool = False, size: dict | None = None):
        context = self.browser.new_context(
            locale=locale, viewport=size or DESKTOP, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        page = context.new_page()
        page.set_default_timeout(120_000)  # a machine may be busy; present elements cause no wait
        page.on(
            "request",
            lambda r: None if r.url.startswith((self.server.url, "data:", "blob:")) else self.outside.append(r.url),
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.server.url)
        page.get_by_role("tab", name="1 ·").wait_for()
        return page

    def check_nothing_broke(self) -> None:
        """Assert that nothing came from outside, and that neither browser nor server failed."""
        assert self.outside == [] and self.errors == []
        assert "Traceback" not in self.server.log.read_text()

    @property
    def run(self) -> Path:
        return self.server.projects / "cat" / "runs" / "first"

    @property
    def dataset(self) -> Path:
        return self.server.projects / "cat" / "dataset"


@contextlib.contextmanager
def browsing(server: Server) -> Iterator[Story]:
    """Yield a browser on the page of a server; both end with the context."""
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Story(server, browser)
        browser.close()
    server.kill()


def tab(page, number: int) -> None:
    page.get_by_role("tab", name=f"{number} ·").click()


def box(page, elem_id: str):
    """Return the input element of a field."""
    return page.locator(f"#{elem_id} textarea, #{elem_id} input").first


def fill(page, elem_id: str, text: str) -> None:
    box(page, elem_id).fill(text)
    if page.locator(f"#{elem_id} input[role=listbox]").count():
        box(page, elem_id).press("Enter")
    box(page, elem_id).blur()


def choose(page, elem_id: str, option: str) -> None:
    box(page, elem_id).click()
    page.get_by_role("option", name=option, exact=True).click()


def upload(page, path: Path, form: str = "train") -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(f"#{form}-load").click()
    chooser.value.set_files(path)


def shoot(page, name: str) -> None:
    """Check that the page is no wider than a desktop's and a phone's screen.

    With KEEP_SCREENSHOTS in the environment, also save a screenshot of both in screenshots/, which takes a second.
    """
    for size, words in ((PHONE, "phone"), (DESKTOP, "desktop")):
        page.set_viewport_size(size)
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # after layout
        if "KEEP_SCREENSHOTS" in os.environ:
            SCREENSHOTS.mkdir(exist_ok=True)
            page.screenshot(path=SCREENSHOTS / f"{name}-{words}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], (name, words)


def looked(page, times: int = 2) -> list[dict | str]:
    """Return the changes in the next answers to the page's looks, of all that it may show."""
    answers = []
    for _ in range(times):
        with page.expect_response(lambda response: response.url.endswith("/run/sdxl_lora_look")) as answer:
            pass
        news, *lists = answer.value.json()["data"]
        answers += [*(json.loads(news)["news"].values() if news else ()), *lists]
    return [answer for answer in answers if answer != SKIP]


def mark_at(page, elem_id: str) -> str:
    """Return the mark beside a field."""
    return page.evaluate(f"getComputedStyle(document.querySelector('#{elem_id}'), '::after').content")


def drawn(page) -> str:
    """Return the number of steps in the plot of the loss; "0" for none."""
    return page.locator("#run-plots figure").first.get_attribute("data-points") or "0"

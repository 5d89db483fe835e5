"""The page in a browser behind a proxy that hides its address, as nginx does with its defaults, and at a sub-path."""

import shutil
from contextlib import ExitStack
from functools import cache

import pytest

from tests.helpers.marks import slow
from tests.helpers.ui_proxy import proxy
from tests.helpers.ui_server import Server, free_port
from webui.server.security import PASSWORD_VARIABLE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no browser: install Debian's chromium (make test does, as root)", allow_module_level=True)
playwright_api = pytest.importorskip("playwright.sync_api")

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        rules = "--host-resolver-rules=MAP lora.example.com 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server_below(tmp_path_factory):
    """A function from a path to the server whose page knows that it is shown there; one for each."""
    with ExitStack() as servers:

        @cache
        def started(below: str) -> Server:
            folder = tmp_path_factory.mktemp("page")
            run = folder / "projects" / "cat" / "runs" / "one"
            run.mkdir(parents=True)
            (run / "status.json").write_text('{"state": "done", "step": 4}')
            (run / "pytorch_lora_weights.safetensors").write_text("weights")
            arguments = ["--root_path", below] if below else []
            server = Server(folder, *arguments, **{PASSWORD_VARIABLE: PASSWORD})
            servers.callback(server.kill)
            return server

        yield started


@pytest.mark.parametrize(
    "name, below, strips, headers",
    [
        *slow(
            ("localhost", "", False, {}),  # nginx' defaults; as behind TLS, the browser says where a request comes from
            ("localhost", "/lora", True, {}),
            ("localhost", "/lora", False, {}),
            ("lora.example.com", "", False, {"x_forwarded_host": "lora.example.com:{port}"}),
        ),
        ("lora.example.com", "/lora", True, {"host": "lora.example.com:{port}"}),
    ],
)
def test_behind_a_proxy_every_press_arrives_and_files_are_fetched(browser, server_below, name, below, strips, headers):
    port, server = free_port(), server_below(below)
    headers = {key: value.format(port=port) for key, value in headers.items()}
    context = browser.new_context(http_credentials={"username": "lora", "password": PASSWORD})
    page = context.new_page()
    page.set_default_timeout(60_000)
    outside: list[str] = []
    page.on("request", lambda r: outside.append(r.url) if not r.url.startswith(f"http://{name}:{port}{below}/") else 0)
    try:
        with proxy(port, server.url, below, strips, **headers):
            page.goto(f"http://{name}:{port}{below}/")
            page.get_by_role("tab", name="5 ·").click()
            page.locator("#result-fetch").click()
            link = page.locator("#result-files a[download]").first
            link.wait_for()
            assert link.get_attribute("href").startswith(f"http://{name}:{port}{below}/")
            fetched = page.evaluate("url => fetch(url).then(answer => answer.text())", link.get_attribute("href"))
            assert fetched == "weights"
            page.get_by_role("tab", name="4 ·").click()
            page.locator("#run-progress .pill.done").wait_for()
            of_gradio = "iframeResizer.contentWindow.min.js"  # for pages in frames; the policy lets none be fetched
            assert [url for url in outside if not url.startswith(("data:", "blob:")) and of_gradio not in url] == []
            page.close()
    finally:
        context.close()

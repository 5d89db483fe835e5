"""Nothing serious that axe-core finds on any tab: in the light, in the dark, on a telephone, as a tab of another app.

axe-core is not part of this project: `npm pack axe-core`, unpack it, and name its
file in AXE_JS.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from preprocess.__main__ import main as preprocess
from tests.helpers.browser import DESKTOP, PHONE, SCREENSHOTS, browsing, tab
from tests.helpers.paths import ROOT
from tests.helpers.ui_server import Server, answers, free_port
from tests.helpers.waiting import until
from tests.helpers.written_runs import make_run

AXE = Path(os.environ.get("AXE_JS", "axe.min.js"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: npm pack axe-core, and AXE_JS=.../axe.min.js"),
]
HOST = """
import sys, pathlib, gradio as gr
from webui.page import I18N, create_tab
from webui.settings.workspace import load_workspace
with gr.Blocks(analytics_enabled=False) as app, gr.Tabs():
    with gr.Tab("Mine"):
        gr.Textbox(label="own")
    create_tab(places=load_workspace(pathlib.Path(sys.argv[1])), title="LoRA")
import tests.helpers.patient_gradio
app.launch(server_port=int(sys.argv[2]), i18n=I18N, quiet=True)
"""
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RUN = """async ([what, tags]) => {
  const found = await axe.run(what, { runOnly: tags, resultTypes: ["violations"] });
  return found.violations.flatMap((one) => one.nodes.map((node) => [one.impact, one.id, node.target.join(" "),
    node.failureSummary.split("\\n")[1]?.trim().slice(0, 160)]));
}"""


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A page with a dataset and with a run that is over."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "raw").mkdir()
    for number in range(3):
        Image.radial_gradient("L").rotate(40 * number).convert("RGB").save(folder / "raw" / f"p{number}.png")
    flags = ["--resolution", "64", "--num_workers", "0", "--caption_model", "none", "--fallback_caption", "a cat, soft"]
    output = folder / "projects" / "cat" / "dataset"
    assert preprocess(["--input_dir", str(folder / "raw"), "--output_dir", str(output), *flags]) == 0
    make_run(folder / "projects", "one")
    with browsing(Server(folder)) as told:
        yield told


@pytest.fixture(scope="module")
def host(story):
    settings, port = story.server.settings, free_port()
    settings = settings.with_name("host.yaml")
    settings.write_text(yaml.safe_dump({"LORA_PROJECTS_DIR": str(story.server.projects)}))
    process = subprocess.Popen([sys.executable, "-c", HOST, str(settings), str(port)], cwd=ROOT)
    until(lambda: answers(f"http://127.0.0.1:{port}"))
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def violations(page, name: str) -> list[str]:
    page.evaluate("document.fonts.ready")
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"axe-{name}.png", full_page=True)
    ours = "html" if name.startswith("own") else ".sdxl-lora"  # what a host is made of is its own
    found = page.evaluate(RUN, [ours, TAGS])
    return [f"{name}: {' | '.join(map(str, one))}" for one in found if one[0] in ("serious", "critical")]


@pytest.mark.parametrize(
    ("place", "dark", "size"),
    [
        ("own", False, DESKTOP),
        ("own", True, DESKTOP),
        ("own", False, PHONE),
        ("own", True, PHONE),
        ("host", False, DESKTOP),
        ("host", True, PHONE),
    ],
    ids=["light", "dark", "light telephone", "dark telephone", "light host", "dark host on a telephone"],
)
def test_axe_finds_nothing_serious_on_any_tab(story, host, place, dark, size):
    page, found = story.open(dark=dark, size=size), []
    if place == "host":
        page.goto(f"{host}/?__theme={'dark' if dark else 'light'}")
        page.get_by_role("tab", name="LoRA", exact=True).click()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    name = f"{place}-{'dark' if dark else 'light'}-{size['width']}"
    page.get_by_role("tab", name="1 ·").wait_for()
    for number in range(1, 6):
        tab(page, number)
        if number == 2:
            page.locator(".picture .frame img").nth(2).wait_for()
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        page.evaluate("document.querySelectorAll('.label-wrap:not(.open)').forEach((fold) => fold.click())")
        page.wait_for_timeout(1500)  # fading in changes contrast
        found += violations(page, f"{name}-{number}")
    tab(page, 2)
    page.locator("button.paint").first.click()
    page.locator(".painter .sheet img[src]").wait_for()
    found += violations(page, f"{name}-painter")
    page.context.close()
    assert not found, "\n".join(found)

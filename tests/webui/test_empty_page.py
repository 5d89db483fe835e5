"""A page on which nothing has run yet, in a real browser: its forms, their mistakes, and the page as a tab."""

import subprocess
import sys

import pytest

from tests.helpers.browser import DESKTOP, LONG, box, fill, looked, mark_at, shoot, tab, upload
from tests.helpers.paths import ROOT
from tests.helpers.ui_server import answers, free_port
from tests.helpers.waiting import until
from webui.runs.jobs import Jobs

QUIET_LOOKS = 5  # looks in which a page at rest must not move


def test_an_empty_page_says_what_to_do_first(story):
    page = story.page
    for number, words in ((2, "No dataset yet"), (4, "No runs yet"), (5, "No run has saved anything yet.")):
        tab(page, number)
        page.get_by_text(words).first.wait_for()
        shoot(page, f"empty-{number}")
    assert page.locator("#now .idle").inner_text() == "Nothing is running at the moment."


def test_a_page_at_rest_stays_still(story):
    """What moves costs: every change in the page, and every part that the server sends, asked for again or not."""
    page = story.page
    looked(page)
    page.evaluate(
        "window.moved = []; new MutationObserver(all => window.moved.push(...all.map(one => one.target.outerHTML)))"
        ".observe(document, {subtree: true, childList: true, attributes: true, characterData: true})"
    )
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    assert looked(page, QUIET_LOOKS) == []
    assert page.evaluate("window.moved") == []
    assert QUIET_LOOKS <= len(requests) <= QUIET_LOOKS + 2, "one request a look, and no other"
    assert page.evaluate("document.getAnimations().filter(one => one.playState === 'running').length") == 0


def test_a_bad_name_and_a_bad_number_are_told_beside_their_fields(story):
    page = story.page
    tab(page, 3)
    fill(page, "train-output_dir", "../x")
    fill(page, "train-rank", "-4")
    fill(page, "train-learning_rate", "fast")
    page.locator("#train").click()
    page.locator("#train-problems li").nth(3).wait_for()
    assert "is an invalid name" in mark_at(page, "train-output_dir")
    assert "must be above 0" in mark_at(page, "train-rank") and "must be a number" in mark_at(
        page, "train-learning_rate"
    )
    assert "give one of" in mark_at(page, "train-train_data_dir")
    assert box(page, "train-rank").get_attribute("aria-invalid") == "true", "also for those who see no marks"
    looked(page)  # the marks stay while the page looks about
    assert "must be above 0" in mark_at(page, "train-rank")
    shoot(page, "mistakes")
    assert Jobs(story.server.projects).all() == []


def test_settings_are_loaded_from_a_file_and_a_bad_one_is_told(story, tmp_path, tiny_base):
    page = story.page
    tab(page, 3)
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("output_dir: runs/dog\ntrain_data_dir: d\nrank: 77\noptimizer: lion\nvalidation_prompt: [a, b]\n")
    bad.write_text("output_dir: x\ntrain_data_dir: d\nrnak: 4\n")
    page.get_by_text("These settings as a file and as a command").locator("visible=true").click()
    upload(page, good)
    until(lambda: box(page, "train-rank").input_value() == "77")
    assert box(page, "train-output_dir").input_value() == "dog" and box(page, "train-optimizer").input_value() == "lion"
    assert box(page, "train-validation_prompt").input_value() == "a\nb"
    assert box(page, "train-pretrained_model_name_or_path").input_value() == str(tiny_base), "the file names no base"
    upload(page, bad)
    page.get_by_text("did you mean 'rank'").wait_for()
    assert box(page, "train-rank").input_value() == "77"


HOST = """
import sys, pathlib, gradio as gr
from webui.module import SdxlLoraTrainer
folder = pathlib.Path(sys.argv[1])
class Models:
    unload_model = staticmethod((folder / "freed").touch)
config = {"LORA_PROJECTS_DIR": folder / "projects", "DEFAULT_SDXL_MODEL_FOR_LORA": "no/such-base", "theme": "dark"}
trainer = SdxlLoraTrainer({"title": "Mine"}, Models(), None, config)
with gr.Blocks(analytics_enabled=False) as app, gr.Tabs():
    with gr.Tab("Mine"):
        gr.Textbox(label="own")
    trainer.create_tab(title="LoRA")
import tests.helpers.patient_gradio
app.launch(server_port=int(sys.argv[2]), quiet=True)
"""


@pytest.mark.slow
def test_the_page_is_a_tab_of_another_app_which_is_told_before_training(story, captioned_photographs, tmp_path):
    port = free_port()
    host = subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path), str(port)], cwd=ROOT)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}"))
        page = story.browser.new_page(locale="fr-FR", viewport=DESKTOP)
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_role("tab", name="LoRA", exact=True).click()
        tab(page, 3)
        page.get_by_text("Taux d'apprentissage").locator("visible=true").first.wait_for()
        shoot(page, "tab-of-another-app")
        fill(page, "train-train_data_dir", str(captioned_photographs))
        assert not (tmp_path / "freed").exists()
        page.locator("#train").click()
        until((tmp_path / "freed").exists)
        page.locator("#run-progress .pill.failed").wait_for(timeout=LONG)
        assert "no/such-base" in page.locator("#run-progress .ending").inner_text()
        shoot(page, "failed")
    finally:
        host.kill()
        host.wait()

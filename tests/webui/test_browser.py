"""The page in a real browser, from photographs to a LoRA. The tests are one story, told in order.

Screenshots of every state, at desktop and phone width, are kept in screenshots/.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from sdxl_lora.run.events import read_events
from sdxl_lora.run.status import read_status
from tests.helpers.paths import ROOT
from tests.helpers.ui_server import Server, answers, free_port
from webui.french import TEXTS
from webui.i18n import dictionaries
from webui.runs.jobs import Jobs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no browser: install Debian's chromium (make test does, as root)", allow_module_level=True)
playwright_api = pytest.importorskip("playwright.sync_api")

SCREENSHOTS = ROOT / "screenshots"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LONG = 240_000  # milliseconds; a training starts in ten seconds on a quiet machine
QUIET_LOOKS = 5  # looks in which a page at rest must not move
SKIPS = (None, {"__type__": "update"}, {"props": {"__type__": "update"}, "__type__": "update"})
EVIL = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'


class Story:
    """One server, one browser, one page in it that goes through all of it; and what must never happen."""

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
        page.set_default_timeout(120_000)  # a machine may be busy; what is there is not waited for
        page.on(
            "request",
            lambda r: None if r.url.startswith((self.server.url, "data:", "blob:")) else self.outside.append(r.url),
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.server.url)
        page.get_by_role("tab", name="1 ·").wait_for()
        return page

    @property
    def run(self) -> Path:
        return self.server.projects / "cat" / "runs" / "first"

    @property
    def dataset(self) -> Path:
        return self.server.projects / "cat" / "dataset"


@pytest.fixture(scope="module")
def story(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "loras").mkdir()
    settings = {"DEFAULT_SDXL_MODEL_FOR_LORA": str(tiny_base), "LORAS_DIR": str(folder / "loras")}
    server = Server(folder, settings=settings)
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Story(server, browser)
        browser.close()
    jobs = Jobs(server.projects)
    for job in jobs.all():
        if process := job.process():
            process.kill()
    server.kill()


def tab(page, number: int) -> None:
    page.get_by_role("tab", name=f"{number} ·").click()


def box(page, elem_id: str):
    """Where one types, of a field."""
    return page.locator(f"#{elem_id} textarea, #{elem_id} input").first


def fill(page, elem_id: str, text: str) -> None:
    box(page, elem_id).fill(text)
    if page.locator(f"#{elem_id} input[role=listbox]").count():
        box(page, elem_id).press("Enter")
    box(page, elem_id).blur()


def choose(page, elem_id: str, option: str) -> None:
    box(page, elem_id).click()
    page.get_by_role("option", name=option, exact=True).click()


def upload(page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#train-load").click()
    chooser.value.set_files(path)


def shoot(page, name: str) -> None:
    """The whole page, as wide as a desk and as a telephone. It must not be wider than either."""
    SCREENSHOTS.mkdir(exist_ok=True)
    for size, words in ((PHONE, "phone"), (DESKTOP, "desktop")):
        page.set_viewport_size(size)
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # laid out anew
        page.screenshot(path=SCREENSHOTS / f"{name}-{words}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], (name, words)


def looked(page, times: int = 2) -> list[dict | str]:
    """What the next answers to the page's looks bring, once they have come: what changed, of all that it may show."""
    answers = []
    for _ in range(times):
        with page.expect_response(lambda response: response.url.endswith("/run/sdxl_lora_look")) as answer:
            pass
        answers += answer.value.json()["data"]
    return [answer for answer in answers if answer not in SKIPS]


def mark_at(page, elem_id: str) -> str:
    """What stands beside a field."""
    return page.evaluate(f"getComputedStyle(document.querySelector('#{elem_id}'), '::after').content")


def drawn(page) -> str:
    return page.locator("#run-plots .smooth polyline").first.get_attribute("points") or ""


def until(condition, seconds: float = 120):
    end = time.time() + seconds
    while time.time() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def steps(run: Path) -> list[int]:
    return [event["step"] for event in read_events(run / "events.jsonl", "step")]


def test_an_empty_page_says_what_to_do_first(story):
    page = story.page
    for number, words in ((2, "No dataset yet"), (4, "No run yet"), (5, "No run has saved anything yet.")):
        tab(page, number)
        page.get_by_text(words).first.wait_for()
        shoot(page, f"empty-{number}")
    assert page.locator("#now .idle").inner_text() == "Nothing runs at the moment."


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
    looked(page)  # the marks stay while the page looks about
    assert "must be above 0" in mark_at(page, "train-rank")
    shoot(page, "mistakes")
    assert Jobs(story.server.projects).all() == []
    fill(page, "train-rank", "4")
    fill(page, "train-learning_rate", "1e-3")


def test_photographs_become_a_dataset(story, captioned_photographs, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(captioned_photographs, raw)
    (raw / "broken.png").write_bytes(b"")
    (raw / "chelsea.txt").write_text(EVIL)
    page = story.page
    fill(page, "project", "cat")
    tab(page, 1)
    shoot(page, "prepare")
    fill(page, "prepare-input_dir", str(raw))
    fill(page, "prepare-trigger_word", "sks")
    fill(page, "prepare-resolution", "64")
    page.locator("#prepare-auto_caption input").uncheck()
    page.locator("#prepare").dblclick()
    page.locator("#prepare-card .pill.done").wait_for(timeout=LONG)
    assert len(Jobs(story.server.projects).all()) == 1, "a double click is one start"
    assert len((story.dataset / "metadata.jsonl").read_text().splitlines()) == 4
    shoot(page, "prepared")


def test_the_dataset_shows_crop_size_tokens_and_what_was_left_out(story):
    page = story.page
    tab(page, 2)
    page.locator("#dataset-about b").first.wait_for()
    page.locator(".picture .frame img").nth(3).wait_for()
    text = page.locator(".cards").inner_text()
    assert "astronaut.png" in text and "512x512 → 64x64" in text and "tokens" in text
    page.get_by_text("Left out, and why").click()
    assert "empty file (0 bytes)" in page.locator("#dataset-about").inner_text()
    shoot(page, "dataset")
    assert page.evaluate("window.broken") is None, "a caption is text, not HTML"


def test_a_caption_is_edited_in_place_and_stands_in_the_file(story):
    page = story.page
    caption = page.locator("textarea:below(:text('coffee.png'))").first
    caption.fill("sks, a   white cup\nof coffee")
    caption.blur()
    page.locator(".saved").wait_for()
    rows = [json.loads(line) for line in (story.dataset / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows if row["source"] == "coffee.png"] == ["sks, a white cup of coffee"]
    fill(page, "dataset-trigger", "ohwx")
    page.locator("#dataset-add-trigger").click()
    until(lambda: "ohwx, sks, a white cup" in (story.dataset / "metadata.jsonl").read_text())
    until(lambda: "trigger_word: ohwx" in (story.dataset / "README.md").read_text())


def test_a_training_is_started_and_its_plot_moves(story):
    page = story.page
    tab(page, 3)
    assert until(lambda: box(page, "train-train_data_dir").input_value()) == str(story.dataset)
    fill(page, "train-output_dir", "first")
    fill(page, "train-resolution", "64")
    fill(page, "train-num_train_epochs", "2000")
    fill(page, "train-validation_prompt", f"sks, a cat\n{EVIL}")
    choose(page, "train-mixed_precision", "no")
    page.get_by_text("Watching it").click()
    fill(page, "train-num_validation_images", "2")
    fill(page, "train-validation_inference_steps", "1")
    fill(page, "train-validation_epochs", "100")  # a picture every ten seconds or so
    page.get_by_text("These settings as a file and as a command").locator("visible=true").click()
    command = box(page, "train-command")
    until(lambda: "--rank 4" in command.input_value())
    assert "--learning_rate 0.001" in command.input_value()
    assert page.locator("#train-problems").inner_text().strip() == "", "mended is mended"
    shoot(page, "train")
    page.locator("#train").dblclick()
    page.locator("#run-progress .pill.starting").wait_for(timeout=LONG)
    assert page.locator("#tabs").get_by_role("tab", name="4 ·").get_attribute("aria-selected") == "true"
    shoot(page, "starting")
    page.locator("#run-plots polyline").first.wait_for(timeout=LONG, state="attached")
    first = drawn(page)
    until(lambda: drawn(page) != first)
    assert len([job for job in Jobs(story.server.projects).all() if job.kind == "train"]) == 1
    page.locator("#run-samples img").nth(3).wait_for(timeout=LONG)
    shoot(page, "training")
    assert page.evaluate("window.broken") is None


def test_a_reloaded_page_shows_the_run_as_it_goes_on(story):
    page = story.page
    step = steps(story.run)[-1]
    page.reload()
    tab(page, 4)
    page.locator("#run-progress .pill.training, #run-progress .pill.sampling").wait_for()
    until(lambda: steps(story.run)[-1] > step)
    assert page.locator("#now .pill.training, #now .pill.sampling").is_visible()


def test_stop_finishes_the_step_saves_and_says_where(story):
    page = story.page
    page.locator("#run-stop").dblclick()
    page.locator("#run-progress .pill.stopped").wait_for(timeout=LONG)
    status = read_status(story.run)
    assert (status["state"], status["exit_code"]) == ("stopped", 0)
    assert status["last_checkpoint"] == f"checkpoint-{status['step']}"
    text = page.locator("#run-progress").inner_text()
    assert f"Stopped at step {status['step']}, saved {status['last_checkpoint']}." in text
    shoot(page, "stopped")


def test_files_of_the_run_are_fetched_and_copied_and_nothing_else_of_it(story, tmp_path):
    page, server = story.page, story.server
    tab(page, 5)
    until(lambda: box(page, "result-run").input_value() == "cat/first")
    until(lambda: page.locator("#result-stages input").count() >= 1)
    page.locator("#result-copy").click()
    copied = until(lambda: next((server.projects.parent / "loras").glob("*.safetensors"), None))
    checkpoint = story.run / read_status(story.run)["last_checkpoint"]
    assert copied.name == "first.safetensors" and copied.read_bytes() == (checkpoint / copied.name).read_bytes()
    page.locator("#result-fetch").click()
    links = page.locator("#result-files a[download]")
    links.nth(1).wait_for()
    names = set()
    for link in links.all():
        if link.get_attribute("href"):
            url = link.get_attribute("href")
            names.add(url.rpartition("/")[2])
            assert httpx.get(url).content == (checkpoint / url.rpartition("/")[2]).read_bytes()
            for other in ("../../config.yaml", "config.yaml", "lora_state.safetensors"):
                assert httpx.get(url.rpartition("/")[0] + "/" + other).status_code in (403, 404)
    assert names == {"first.safetensors", "pytorch_lora_weights.safetensors"}
    shoot(page, "results")


def test_a_run_goes_on_from_its_checkpoint_through_the_death_of_the_page(story):
    page = story.page
    stopped_at = steps(story.run)[-1]
    tab(page, 4)
    page.locator("#run-resume").click()
    until(lambda: steps(story.run)[-1] > stopped_at, LONG / 1000)
    story.server.kill()
    step = steps(story.run)[-1]
    until(lambda: steps(story.run)[-1] > step)
    ours, gradio_s = "The page's server does not answer.", "Connection Lost"  # whichever notices
    page.get_by_text(re.compile(f"{ours}|{gradio_s}")).first.wait_for()
    story.server.start()
    page.locator("#now .pill.training, #now .pill.sampling").wait_for()  # the old page finds it again by itself
    page.context.close()
    page = story.page = story.open()
    tab(page, 4)
    page.locator("#run-progress .pill.training, #run-progress .pill.sampling").wait_for()
    done = steps(story.run)
    assert done == list(range(1, len(done) + 1)), "no step is missing, none is done twice"
    page.locator("#stop").click()
    page.locator("#run-progress .pill.stopped").wait_for(timeout=LONG)
    assert "resuming" not in page.locator("#run-log").inner_text()


def test_the_page_speaks_french_where_the_browser_does(story):
    page = story.open(locale="fr-FR", dark=True)
    english = [text for text in (*TEXTS, *dictionaries()["fr"]) if "{" not in text and " " in text]
    french = {*TEXTS.values(), *dictionaries()["fr"].values()}
    seen = ("Dossier source", "Mot déclencheur", "Taux d'apprentissage", "Arrêté au pas", "Poids, à côté de la base")
    for number, words in enumerate(seen, start=1):
        tab(page, number)
        page.get_by_text(words).locator("visible=true").first.wait_for()
        for heading in page.locator("#tabs button.label-wrap").all():
            if heading.is_visible():
                heading.click()
        looked(page, 1)
        lines = {line.strip() for line in page.locator("body").inner_text().splitlines()}
        left = [text for text in english if text in lines and text not in french]
        assert left == [], f"untranslated on tab {number}"
        shoot(page, f"french-dark-{number}")
    assert page.locator("#stop").inner_text() == "Arrêter"
    tab(page, 3)
    fill(page, "train-rank", "-1")
    page.locator("#train").click()
    page.locator("#train-problems li").first.wait_for()
    assert "Rang: rank vaut -1, il faut au-dessus de 0" in page.locator("#train-problems").inner_text()
    page.context.close()


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


@pytest.mark.slow
def test_what_waits_is_seen_moved_and_cancelled(story):
    page, jobs = story.page, Jobs(story.server.projects)
    tab(page, 4)
    choose(page, "run-chosen", "cat/first")
    page.locator("#run-resume").click()
    page.locator("#now .pill.training, #now .pill.sampling").wait_for(timeout=LONG)
    for name in ("second", "third"):
        page.locator("#run-progress .pill").first.wait_for()
        choose(page, "run-chosen", "cat/first")
        looked(page)
        tab(page, 3)
        fill(page, "train-train_data_dir", str(story.dataset))
        fill(page, "train-output_dir", name)
        page.locator("#train").click()
        page.locator("#run-progress .pill.waiting").wait_for()
    page.locator("#queue li").nth(1).wait_for()
    assert page.locator("#queue ol").inner_text().split() == ["Training", "second", "Training", "third"]
    shoot(page, "queue")
    choose(page, "queue-job", "Training third")
    page.locator("#queue-up").click()
    until(lambda: page.locator("#queue ol").inner_text().split()[1] == "third")
    for _ in range(2):
        page.locator("#queue-cancel").click()
        looked(page)
    until(lambda: jobs.waiting() == [])
    page.locator("#stop").click()
    until(lambda: jobs.running() is None, LONG / 1000)


@pytest.mark.slow
def test_pictures_are_drawn_with_the_lora_beside_the_base(story):
    page = story.page
    tab(page, 5)
    choose(page, "result-run", "cat/first")
    until(lambda: page.locator("#result-stages input").count() >= 2)
    page.locator("#result-stages input").nth(1).check()
    fill(page, "result-prompts", "a cat")
    fill(page, "result-steps", "2")
    fill(page, "result-side", "63")
    page.locator("#result-draw").click()
    page.get_by_text("must be a multiple of 8 up to 4096").wait_for()
    fill(page, "result-side", "64")
    page.locator("#result-draw").click()
    page.locator("#result-drawn .pill.done").wait_for(timeout=LONG)
    assert page.locator("#result-drawn img").count() == 2 * 3
    shoot(page, "drawn")


@pytest.mark.slow
def test_preparing_and_training_follow_one_another_by_one_press(story, captioned_photographs):
    page = story.page
    tab(page, 1)
    fill(page, "project", "dog")
    fill(page, "prepare-input_dir", str(captioned_photographs))
    assert box(page, "prepare-resolution").input_value() == "64", "a page opened anew shows what was last asked for"
    tab(page, 3)
    fill(page, "train-resolution", "64")
    choose(page, "train-mixed_precision", "no")
    fill(page, "train-output_dir", "only")
    fill(page, "train-num_train_epochs", "1")
    fill(page, "train-validation_prompt", "")
    page.locator("#prepare-and-train").click()
    page.locator("#run-progress .pill.done").wait_for(timeout=2 * LONG)
    assert (story.server.projects / "dog" / "runs" / "only" / "only.safetensors").exists()
    assert (story.server.projects / "dog" / "dataset" / "metadata.jsonl").exists()
    shoot(page, "done")


HOST = """
import sys, pathlib, gradio as gr
from webui.page import I18N, create_tab
from webui.workspace import load_workspace
folder = pathlib.Path(sys.argv[1])
with gr.Blocks(analytics_enabled=False) as app, gr.Tabs():
    with gr.Tab("Mine"):
        gr.Textbox(label="own")
    create_tab(before_training=(folder / "freed").touch, places=load_workspace(folder / "ui.yaml"), title="LoRA")
app.launch(server_port=int(sys.argv[2]), i18n=I18N, quiet=True)
"""


@pytest.mark.slow
def test_the_page_is_a_tab_of_another_app_which_is_told_before_training(story, captioned_photographs, tmp_path):
    settings = {"LORA_PROJECTS_DIR": str(tmp_path / "projects"), "DEFAULT_SDXL_MODEL_FOR_LORA": "no/such-base"}
    (tmp_path / "ui.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    host = subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path), str(port)], cwd=ROOT)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}"))
        page = story.browser.new_page(locale="fr-FR", viewport=DESKTOP)
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_role("tab", name="LoRA", exact=True).click()
        tab(page, 3)
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


def test_nothing_came_from_outside_and_nothing_broke(story):
    assert story.outside == [] and story.errors == []
    assert "Traceback" not in story.server.log.read_text()

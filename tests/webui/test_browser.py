"""The page in a real browser, from photographs to a LoRA. The tests are one story, told in order.

With KEEP_SCREENSHOTS=1, screenshots of every state, at desktop and phone width, are kept in screenshots/.
"""

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest

from sdxl_lora.run.events import read_events
from sdxl_lora.run.status import read_status
from tests.helpers.browser import LONG, box, choose, drawn, fill, looked, shoot, tab
from tests.helpers.waiting import until
from webui.locale.i18n import LOCALES, dictionaries
from webui.runs.jobs import Jobs

EVIL = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'


def steps(run: Path) -> list[int]:
    return [event["step"] for event in read_events(run / "events.jsonl", "step")]


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
    page.locator("#prepare-go-on").click()
    until(lambda: box(page, "dataset-chosen").input_value() == "cat/dataset")


def test_the_dataset_shows_crop_size_tokens_and_what_was_left_out(story):
    page = story.page
    page.locator("#dataset-about b").first.wait_for()
    page.locator(".picture .frame img").nth(3).wait_for()
    text = page.locator(".row.cards").inner_text()
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
    page.locator("#dataset-go-on").click()
    assert until(lambda: box(page, "train-train_data_dir").input_value()) == str(story.dataset)
    assert "ohwx, sks" in until(lambda: box(page, "train-validation_prompt").input_value()), "captions to draw"
    fill(page, "train-output_dir", "../first")
    page.locator("#train").click()
    page.locator("#train-problems li").first.wait_for()
    fill(page, "train-output_dir", "first")
    fill(page, "train-rank", "4")
    fill(page, "train-learning_rate", "1e-3")
    fill(page, "train-resolution", "64")
    fill(page, "train-num_train_epochs", "2000")
    fill(page, "train-validation_prompt", f"sks, a cat\n{EVIL}")
    choose(page, "train-mixed_precision", "no")
    page.get_by_role("button", name="Samples and validation").click()
    fill(page, "train-num_validation_images", "2")
    fill(page, "train-validation_inference_steps", "1")
    fill(page, "train-validation_epochs", "10")  # forty steps, ten seconds or so
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
    page.locator("#run-plots canvas").first.wait_for(timeout=LONG)
    first = drawn(page)
    until(lambda: drawn(page) != first)
    assert len([job for job in Jobs(story.server.projects).all() if job.kind == "train"]) == 1
    page.locator("#run-samples img").nth(3).wait_for(timeout=LONG)
    shoot(page, "training")
    assert page.evaluate("window.broken") is None


def test_samples_open_at_full_size_go_on_by_keys_and_are_saved(story, tmp_path):
    page = story.page
    page.locator("#run-samples button.image").first.click()
    image, about = page.locator("dialog.viewer:not(.painter) img"), page.locator("dialog.viewer:not(.painter) p")
    until(lambda: image.evaluate("image => image.complete && image.naturalWidth") == 64)
    shown = about.inner_text()
    page.keyboard.press("ArrowDown")
    until(lambda: about.inner_text() != shown)
    shoot(page, "sample")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save").click()
    saved.value.save_as(tmp_path / "saved.png")
    samples = [path.read_bytes() for path in (story.run / "samples").glob("step-*.png")]
    assert (tmp_path / "saved.png").read_bytes() in samples and saved.value.suggested_filename.endswith(".png")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


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
    page.locator("#run-go-on").click()
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
    ours, gradio_s = "The page's server is not responding.", "Connection Lost"  # whichever notices
    page.get_by_text(re.compile(f"{ours}|{gradio_s}")).first.wait_for()
    story.server.start()
    page.locator("#now .pill.training, #now .pill.sampling").wait_for()  # the old page finds it again by itself
    page.reload()  # and stands where the run is seen
    page.locator("#run-progress .pill.training, #run-progress .pill.sampling").wait_for()
    done = steps(story.run)
    assert done == list(range(1, len(done) + 1)), "no step is missing, none is done twice"
    page.locator("#stop").click()
    page.locator("#run-progress .pill.stopped").wait_for(timeout=LONG)
    page.get_by_role("button", name="What happened").click()
    page.locator("#run-log").get_by_text("starting at step").first.wait_for()
    assert "resuming" not in page.locator("#run-log").inner_text()


@pytest.mark.slow
def test_the_page_speaks_french_where_the_browser_does(story):
    page = story.open(locale="fr-FR", dark=True)
    english = [text for text in (*LOCALES["fr"].texts, *dictionaries()["fr"]) if "{" not in text and " " in text]
    french = {*LOCALES["fr"].texts.values(), *dictionaries()["fr"].values()}
    seen = ("Dossier source", "Mot déclencheur", "Taux d'apprentissage", "Arrêté au pas", "Poids, à côté de la base")
    for number, words in enumerate(seen, start=1):
        tab(page, number)
        page.get_by_text(words).locator("visible=true").first.wait_for()
        if number == 3:  # where most words are, behind headings
            for heading in page.locator("#tabs button.label-wrap").all():
                if heading.is_visible():
                    heading.click()
        looked(page, 1)
        lines = {line.strip() for line in page.locator("body").inner_text().splitlines()}
        left = [text for text in english if text in lines and text not in french]
        assert left == [], f"untranslated on tab {number}"
        if number == 3:
            shoot(page, "french-dark")
    assert page.locator("#stop").inner_text() == "Arrêter"
    tab(page, 3)
    fill(page, "train-rank", "-1")
    page.locator("#train").click()
    page.locator("#train-problems li").first.wait_for()
    assert "Rang: vaut -1, il faut au-dessus de 0" in page.locator("#train-problems").inner_text()
    page.context.close()


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


def test_nothing_came_from_outside_and_nothing_broke(story):
    assert story.outside == [] and story.errors == []
    assert "Traceback" not in story.server.log.read_text()

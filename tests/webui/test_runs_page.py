"""Runs that are over, on a page in a real browser: plots, table, comparison, upkeep; presets; a server that is gone."""

import json

import pytest

from sdxl_lora.run.events import EventLog
from tests.helpers.browser import box, choose, drawn, fill, looked, shoot, tab
from tests.helpers.waiting import until
from tests.helpers.written_runs import STEPS, make_run

pytestmark = pytest.mark.slow


def test_the_plots_of_a_run_show_all_steps_and_zoom(story):
    projects = story.server.projects
    for name, rank in (("small", 8), ("large", 32)):
        make_run(projects, name, rank=rank)
    page = story.page
    tab(page, 4)
    until(lambda: drawn(page) == str(STEPS))
    titles = page.locator("#run-plots figcaption:visible").all_inner_texts()
    assert titles == ["Loss", "Loss by timesteps", "Gradient norm", "Learning rate"]
    over, chart = page.locator("#run-plots .u-over").first, page.locator("#run-plots figure").first
    over.scroll_into_view_if_needed()
    where = over.bounding_box()
    page.mouse.move(where["x"] + where["width"] / 2, where["y"] + 50)
    assert abs(int(page.locator("#run-plots .u-legend .u-value").first.inner_text()) - STEPS / 2) < 5
    page.mouse.down()
    page.mouse.move(where["x"] + where["width"] * 0.75, where["y"] + 60, steps=4)
    page.mouse.up()
    seen = until(lambda: chart.evaluate("f => f.chart.isZoomed && [f.chart.scales.x.min, f.chart.scales.x.max]"))
    assert abs(seen[0] - STEPS / 2) < 10 and abs(seen[1] - STEPS * 0.75) < 10
    page.get_by_label("Logarithmic").check()
    until(lambda: chart.evaluate("f => f.chart.scales.y.distr === 3"))
    shoot(page, "plots")
    page.get_by_label("Logarithmic").uncheck()


def test_two_runs_are_compared_and_one_is_noted_renamed_and_deleted(story):
    page, runs = story.page, story.server.projects / "cat" / "runs"
    page.get_by_role("button", name="All runs: table and comparison").click()
    page.locator("#run-table td").first.wait_for()
    for name in ("cat/small", "cat/large"):
        box(page, "run-compared").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.locator("#run-comparison canvas").first.wait_for()
    assert "Rank" in page.locator("#run-comparison table.plain").inner_text()
    until(lambda: page.locator("#run-comparison img").count() == 2)
    page.keyboard.press("Escape")
    shoot(page, "comparison")
    chosen = box(page, "run-chosen").input_value()
    run = runs / chosen.removeprefix("cat/")
    page.get_by_role("button", name="Note, rename, delete").click()
    until(lambda: box(page, "run-name").input_value() == run.name)
    fill(page, "run-note", "the good one")
    page.locator("#run-keep").click()
    until(lambda: (run / "note.txt").exists() and (run / "note.txt").read_text() == "the good one")
    fill(page, "run-name", "better")
    page.locator("#run-rename").click()
    until(lambda: (runs / "better" / "events.jsonl").exists())
    until(lambda: box(page, "run-chosen").input_value() == "cat/better")
    page.locator("#run-delete").click()
    page.locator("#run-sure").click()
    until(lambda: not (runs / "better").exists())
    [moved] = (story.server.projects / ".page" / "deleted").iterdir()
    assert (moved / "better" / "note.txt").read_text() == "the good one"
    until(lambda: box(page, "run-chosen").input_value().startswith("cat/") and "better" not in drawn_name(page))


def drawn_name(page) -> str:
    return page.locator("#run-progress strong").first.inner_text()


def test_a_preset_fills_in_the_form_and_keeps_what_is_the_persons(story):
    page = story.page
    tab(page, 3)
    fill(page, "train-validation_prompt", "mine")
    choose(page, "train-card", "6 GB")
    choose(page, "train-subject", "A style, 30 to 200 images")
    until(lambda: box(page, "train-rank").input_value() == "32")
    assert page.locator("#train-gradient_checkpointing input").is_checked()
    assert box(page, "train-train_batch_size").input_value() == "1"
    assert box(page, "train-validation_prompt").input_value() == "mine"
    choose(page, "train-subject", "A person, animal or object, 10 to 40 images")
    until(lambda: box(page, "train-max_train_steps").input_value() == "1000")
    assert box(page, "train-rank").input_value() == "16"
    page.locator("#train-ask").click()
    page.locator("#train-problems li").first.wait_for()
    shoot(page, "presets")


def test_plots_whose_numbers_do_not_come_are_asked_for_now_and_then(story):
    page, asked = story.page, []
    tab(page, 4)
    [run] = (story.server.projects / "cat" / "runs").iterdir()
    page.route("**/sdxl_lora_curves", lambda route: (asked.append(1), route.abort()))
    EventLog(run / "events.jsonl").write("step", step=STEPS + 1, loss=0.2, epoch=15.1)
    page.wait_for_timeout(5000)
    assert 1 <= len(asked) <= 3
    page.unroute("**/sdxl_lora_curves")
    until(lambda: drawn(page) == str(STEPS + 1))


def test_a_page_whose_server_sends_no_end_asks_again(story):
    """As a machine that is switched off, or a container that goes: nothing ever answers, and nothing says so."""
    context = story.browser.new_context(locale="en-US")
    context.add_init_script("const old = AbortSignal.timeout; AbortSignal.timeout = () => old.call(AbortSignal, 2000);")
    page = context.new_page()
    page.goto(story.server.url)
    tab(page, 4)
    page.locator("#run-progress .pill.done").wait_for()
    looked(page)
    page.route("**/sdxl_lora_look", lambda route: None)  # neither answered nor broken off
    page.get_by_text("The page's server is not responding.").wait_for()
    [run] = (story.server.projects / "cat" / "runs").iterdir()
    (run / "status.json").write_text(json.dumps({"state": "stopped", "step": STEPS}))
    page.unroute("**/sdxl_lora_look")
    page.locator("#run-progress .pill.stopped").wait_for()
    assert page.locator("#now .idle").inner_text() == "Nothing is running at the moment."
    context.close()


def test_a_page_that_hears_nothing_more_says_so_and_is_loaded_anew_as_soon_as_it_can_be(story):
    """A press while the server is away is what Gradio never comes back from by itself."""
    page, server = story.page, story.server
    tab(page, 4)
    looked(page)
    page.route("**/app_id", lambda route: route.abort())  # by which it sees that the server is there again
    server.kill()
    page.locator("#run-again").click()
    page.get_by_text("This page has lost its server").wait_for()
    [run] = (server.projects / "cat" / "runs").iterdir()
    (run / "status.json").write_text(json.dumps({"state": "failed", "step": 7, "reason": "odd"}))
    (run / "note.txt").write_text("from before")
    server.start()
    page.unroute("**/app_id")
    page.get_by_text("This page has lost its server").wait_for(state="hidden")
    tab(page, 4)
    page.locator("#run-progress .pill.failed").wait_for()
    page.get_by_role("button", name="Note, rename, delete").click()
    until(
        lambda: box(page, "run-note").input_value() == "from before" and box(page, "run-name").input_value() == run.name
    )
    story.errors.clear()  # of the requests that were refused

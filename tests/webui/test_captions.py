"""Captions edited in a browser while something else happens to the dataset: nothing typed is lost or misplaced.

The lock that preprocess holds while it works stands for a preparation and for a slow disk.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from preprocess.__main__ import main as preprocess
from tests.helpers.browser import CHROMIUM, looked, playwright_api, tab
from tests.helpers.ui_server import Server
from tests.helpers.waiting import until

DATASET_NAME = "cat/dataset"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    raw, data = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data") / "dataset"
    for number in range(14):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(raw / f"p{number:02}.png")
        (raw / f"p{number:02}.txt").write_text(f"caption {number:02}")
    flags = ["--resolution", "64", "--num_workers", "0", "--caption_model", "none"]
    assert preprocess(["--input_dir", str(raw), "--output_dir", str(data), *flags]) == 0
    return data


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("page"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def folder(server, prepared) -> Path:
    folder = server.projects / DATASET_NAME
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder)
    return folder


def opened(server, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(60_000)
    page.goto(server.url)
    tab(page, 2)
    box(page, 11).wait_for()
    looked(page)
    return page


@pytest.fixture
def page(server, browser, folder):
    page = opened(server, browser)
    yield page
    page.close(run_before_unload=False)


def box(page, number: int):
    return page.locator(f"#caption-{number} textarea")


def texts(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["source"]: row["text"] for row in rows}


def change(folder: Path, source: str, text: str) -> None:
    """As an editor or another program does it."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    new = [{**row, "text": text} if row["source"] == source else row for row in rows]
    (folder / "new").write_text("".join(json.dumps(row) + "\n" for row in new), encoding="utf-8")
    os.replace(folder / "new", folder / "metadata.jsonl")


def held(folder: Path) -> FileLock:
    lock = FileLock(folder / ".preprocess" / "lock", thread_local=False)
    lock.acquire()
    return lock


def source_of(page, number: int) -> str:
    return page.locator(f"#card-{number} strong").inner_text()


def test_what_is_saved_slowly_goes_into_its_own_row_and_the_next_page_into_its_own(page, folder):
    source, lock = source_of(page, 3), held(folder)
    box(page, 3).fill("edited first")
    page.locator("#dataset-forth").click()
    looked(page, 1)
    lock.release()
    until(lambda: box(page, 2).count() == 0 or not box(page, 2).is_visible())
    assert source_of(page, 1) == "p13.png" and box(page, 1).input_value() == "caption 13"
    box(page, 1).fill("edited second")
    box(page, 1).blur()
    until(lambda: texts(folder)["p13.png"] == "edited second")
    looked(page, 3)
    expected = {f"p{number:02}.png": f"caption {number:02}" for number in range(14)}
    assert texts(folder) == {**expected, source: "edited first", "p13.png": "edited second"}
    assert box(page, 1).input_value() == "edited second"


def test_what_is_being_typed_stays_while_other_cards_are_brought_up_to_date(page, folder):
    source = source_of(page, 1)
    box(page, 1).click()
    page.keyboard.press("End")
    page.keyboard.type(" and more")
    change(folder, source_of(page, 7), "by another program")
    until(lambda: box(page, 7).input_value() == "by another program")
    looked(page)
    assert box(page, 1).input_value() == f"caption {source[1:3]} and more"
    page.keyboard.type(" still")
    box(page, 1).blur()
    until(lambda: texts(folder)[source] == f"caption {source[1:3]} and more still")
    assert texts(folder)[source_of(page, 7)] == "by another program"


@pytest.mark.slow
def test_what_cannot_be_saved_now_stays_in_its_box_and_is_saved_later(page, folder):
    source, lock = source_of(page, 0), held(folder)
    box(page, 0).fill("typed during a preparation")
    page.locator("#dataset-forth").click()
    page.get_by_text("is being prepared").first.wait_for()
    page.locator("#caption-0 textarea[data-unsaved]").wait_for()
    change(folder, source_of(page, 5), "by the preparation")
    until(lambda: box(page, 5).input_value() == "by the preparation")
    assert source_of(page, 0) == source and box(page, 0).input_value() == "typed during a preparation"
    lock.release()
    page.locator("#dataset-forth").click()
    until(lambda: texts(folder)[source] == "typed during a preparation")
    until(lambda: source_of(page, 0) == "p12.png")


def test_of_two_tabs_the_later_one_is_told_and_keeps_what_was_typed(page, server, browser, folder):
    other, source = opened(server, browser), source_of(page, 2)
    box(page, 2).fill("from the first tab")
    box(other, 2).fill("from the second tab")
    box(page, 2).blur()
    until(lambda: texts(folder)[source] == "from the first tab")
    looked(other)
    assert box(other, 2).input_value() == "from the second tab"
    box(other, 2).blur()
    other.get_by_text("was changed elsewhere").first.wait_for()
    looked(other)
    assert texts(folder)[source] == "from the first tab" and box(other, 2).input_value() == "from the second tab"
    box(other, 2).focus()
    box(other, 2).blur()
    until(lambda: texts(folder)[source] == "from the second tab")
    until(lambda: box(page, 2).input_value() == "from the second tab")
    box(other, 4).fill("elsewhere in the second tab")
    box(other, 4).blur()
    until(lambda: box(page, 4).input_value() == "elsewhere in the second tab")
    other.close(run_before_unload=False)


@pytest.mark.slow
def test_a_dataset_that_was_chosen_for_training_is_not_replaced_by_a_newer_one(page, server, folder, prepared):
    dataset = page.locator("#train-train_data_dir input").first
    tab(page, 3)
    until(lambda: dataset.input_value() == str(folder))
    dog, bird = server.projects / "dog" / "dataset", server.projects / "bird" / "dataset"
    shutil.copytree(prepared, dog)
    os.utime(dog / "metadata.jsonl")
    until(lambda: dataset.input_value() == str(dog))
    dataset.fill("/my/own")
    dataset.press("Enter")
    dataset.blur()
    shutil.copytree(prepared, bird)
    os.utime(bird / "metadata.jsonl")
    looked(page, 3)
    assert dataset.input_value() == "/my/own"
    for other in (dog, bird):
        shutil.rmtree(other.parent)


def test_a_caption_is_made_anew_only_where_a_person_has_said_yes(page, server, folder):
    """The dataset was prepared without a captioner: that word is the server's answer to a yes."""
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.locator("#recaption-1").click()
    looked(page)
    assert "Replace this caption?" in asked[0] and page.get_by_text("without auto-caption").count() == 0
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#recaption-1").click()
    page.get_by_text("without auto-caption").first.wait_for()

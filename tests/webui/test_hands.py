"""Images, captions and masks by hand in a browser: brought in, searched, changed at once, taken out, painted."""

import json
import random
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.helpers.browser import LONG, box, browsing, choose, fill, looked, shoot, tab, upload
from tests.helpers.ui_server import Server
from tests.helpers.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One page and browser, without a base: nothing is trained here."""
    with browsing(Server(tmp_path_factory.mktemp("page"))) as told:
        yield told
    told.check_nothing_broke()


def texts(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["source"]: row["text"] for row in rows}


def cards(page) -> list[str]:
    names = page.locator(".picture .about strong")  # all at once: cards come and go
    return names.evaluate_all("all => all.filter(one => one.offsetParent).map(one => one.innerText)")


def test_files_from_another_machine_are_brought_in_shown_and_prepared(story, captioned_photographs, tmp_path):
    raw = tmp_path / "photos"
    shutil.copytree(captioned_photographs, raw)
    (raw / "notes.docx").write_bytes(b"no image")
    page, folder = story.page, story.server.projects / "cat" / "images"
    fill(page, "project", "cat")
    tab(page, 1)
    page.locator("#upload input[data-of=files]").set_input_files(sorted(raw.iterdir()))
    page.locator("#upload .said", has_text="8 files are in the folder.").wait_for()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in raw.iterdir() if path.suffix != ".docx"
    }
    assert "notes.docx: neither an image" in page.locator("#upload li").text_content()
    until(lambda: box(page, "prepare-input_dir").input_value() == str(folder))
    page.locator("#upload-shown img").nth(3).wait_for()
    shoot(page, "brought")
    page.locator("#upload input[data-of=files]").set_input_files(sorted(raw.glob("*.png")))
    page.locator("#upload .said", has_text="2 files are in the folder, 2 of them from before.").wait_for()
    fill(page, "prepare-trigger_word", "sks")
    fill(page, "prepare-resolution", "64")
    page.locator("#prepare-auto_caption input").uncheck()
    page.locator("#prepare").click()
    page.locator("#prepare-card .pill.done").wait_for(timeout=LONG)
    page.locator("#prepare-go-on").click()
    page.locator(".picture .frame img").nth(3).wait_for()
    assert sorted(cards(page)) == ["astronaut.png", "chelsea.jpg", "coffee.png", "rocket.jpg"]
    tab(page, 1)
    page.locator("#upload-shown [data-leave-out='rocket.jpg']").click()
    page.locator("#upload-shown figure.out", has_text="left out by you").wait_for()
    page.get_by_text("Job options").locator("visible=true").click()
    assert box(page, "prepare-leave_out").input_value() == "rocket.jpg"
    page.get_by_role("button", name="Use it after all: rocket.jpg").click()
    until(lambda: box(page, "prepare-leave_out").input_value() == "")
    settings = tmp_path / "settings.yaml"
    told = {"input_dir": str(folder), "output_dir": str(story.dataset), "leave_out": ["coffee.png"], "resolution": 64}
    settings.write_text(yaml.safe_dump(told))
    fill(page, "prepare-input_dir", str(raw))
    page.get_by_role("button", name="These settings as a file").locator("visible=true").click()
    upload(page, settings, "prepare")
    until(lambda: box(page, "prepare-leave_out").input_value() == "coffee.png")
    box(page, "prepare-input_dir").focus()
    page.keyboard.press("Tab")
    looked(page, times=4)
    assert box(page, "prepare-leave_out").input_value() == "coffee.png", "leaving a field is no choice"
    fill(page, "prepare-output_dir", "another")
    fill(page, "prepare-output_dir", "dataset")
    until(lambda: box(page, "prepare-leave_out").input_value() == "")


def test_a_folder_whose_sending_breaks_off_goes_on_by_itself_or_at_a_press_and_is_there_whole(story, tmp_path):
    page, folder, raw = story.page, story.server.projects / "cat" / "images", tmp_path / "10_dog"
    raw.mkdir()
    for number in range(3):
        (raw / f"{number}.png").write_bytes(random.Random(number).randbytes(16_000_000))
    tab(page, 1)
    page.locator("#upload input[data-of=folder]").set_input_files(raw)
    until(lambda: [part for part in folder.rglob("*.part") if part.stat().st_size])
    story.server.kill()
    assert not (folder / "10_dog" / "2.png").exists()
    page.locator("#upload .said", has_text="trying again").wait_for()
    page.locator("#upload [data-stop]").click()
    page.locator("#upload .said", has_text="Stopped.").wait_for()
    story.server.start()
    page.locator("#upload [data-on]").click()
    until(lambda: (folder / "10_dog").exists() or sum(path.stat().st_size for path in folder.rglob("*.part")) > 2**23)
    story.server.kill()
    story.server.start()
    page.locator("#upload .said", has_text="3 files are in the folder.").wait_for()
    assert {path.name: path.read_bytes() for path in (folder / "10_dog").iterdir()} == {
        path.name: path.read_bytes() for path in raw.iterdir()
    }
    assert not (folder / ".uploading").exists()
    shutil.rmtree(folder / "10_dog")
    page.reload()


def test_another_site_can_bring_nothing_in(story):
    asked = {"data": [json.dumps({"project": "cat", "folder": "images", "begin": []}), ""]}
    url = f"{story.server.url}/gradio_api/run/sdxl_lora_upload"
    assert httpx.post(url, json=asked, headers={"Origin": "http://evil.example"}).status_code == 403
    assert json.loads(httpx.post(url, json=asked).json()["data"][0]) == {"files": []}


def test_many_captions_are_changed_after_a_look_and_undone(story):
    page, before = story.page, texts(story.dataset)
    tab(page, 2)
    page.get_by_role("button", name="Tags and bulk edits").click()
    page.locator("#bulk-tags button.tag.marked", has_text="sks").wait_for()
    page.locator("#bulk-tags button.tag", has_text="sks").click()  # becomes the search, and the tag to change
    until(lambda: box(page, "dataset-search").input_value() == "[sks]")
    fill(page, "dataset-search", "coffee")
    until(lambda: cards(page) == ["coffee.png"])
    fill(page, "bulk-what", "studio light")
    page.locator("#bulk-look").click()
    page.locator("#bulk-preview ins").wait_for()
    assert "1 of 1 captions" in page.locator("#bulk-preview").inner_text() and texts(story.dataset) == before
    shoot(page, "bulk")
    page.locator("#bulk-apply").click()
    until(lambda: texts(story.dataset)["coffee.png"] == f"{before['coffee.png']}, studio light")
    until(lambda: page.locator("#caption-0 textarea").input_value().endswith(", studio light"))
    assert {**texts(story.dataset), "coffee.png": before["coffee.png"]} == before
    page.locator("#dataset-undo").click()
    until(lambda: texts(story.dataset) == before)
    fill(page, "dataset-search", "")
    until(lambda: len(cards(page)) == 4)


def test_the_keys_go_from_caption_to_caption_and_an_image_is_taken_out_and_back(story):
    page, before = story.page, texts(story.dataset)
    page.locator("#caption-0 textarea").focus()
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Control+ArrowDown")
    page.keyboard.press("Control+ArrowUp")
    assert page.evaluate("document.activeElement.closest('[id^=caption-]').id") == "caption-1"
    looked(page)
    name = cards(page)[1]
    assert page.locator("#delete-1").get_attribute("aria-label") == f"Remove: {name}"
    page.locator("#delete-1").click()
    until(lambda: name not in texts(story.dataset))
    until(lambda: len(cards(page)) == 3)
    page.locator("#dataset-undo").click()
    until(lambda: texts(story.dataset) == before)
    until(lambda: len(cards(page)) == 4)


def test_a_mask_is_painted_kept_changed_and_undone(story):
    page, folder = story.page, story.dataset

    def masks() -> list[np.ndarray]:
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        names = [row["mask_file_name"] for row in rows if row.get("mask_file_name")]
        return [np.asarray(Image.open(folder / name)) for name in names]

    page.locator("button.paint").first.click()
    page.locator(".painter .sheet img[src]").wait_for()
    place = page.locator(".painter canvas").bounding_box()
    left, middle = place["x"] + 5, place["y"] + place["height"] / 2
    page.mouse.move(left, middle)
    page.mouse.down()
    page.mouse.move(left + place["width"] / 2, middle, steps=5)
    page.mouse.up()
    shoot(page, "painter")
    page.locator(".painter [data-save]").click()
    page.locator(".painter").wait_for(state="hidden")
    (mask,) = masks()
    assert mask[32, 1] == 0 and mask[32, 30] == 0 and mask[32, 62] == 255 and mask[1, 1] == 255, "where it was painted"
    page.locator("button.paint", has_text="Edit the mask").click()
    page.locator(".painter [role=status]", has_text="is not learned").wait_for()
    page.locator(".painter [data-swap]").click()
    page.locator(".painter canvas").focus()
    page.keyboard.press("Space")  # at the middle, which is learned by now
    page.keyboard.press("Control+z")
    page.locator(".painter [data-save]").click()
    until(lambda: np.abs(255.0 - masks()[0] - mask).max() <= 2)  # a canvas rounds
    page.locator("#dataset-undo").click()
    until(lambda: [one.tolist() for one in masks()] == [mask.tolist()])
    looked(page)
    page.locator("#dataset-undo").click()
    until(lambda: masks() == [])


def test_all_of_it_is_there_in_french_and_in_the_dark(story):
    page = story.open(locale="fr-FR", dark=True)
    fill(page, "project", "cat")
    tab(page, 1)
    page.get_by_text("Choisir un dossier").wait_for()
    fill(page, "prepare-input_dir", str(story.server.projects / "cat" / "images"))
    page.locator("#upload-shown img").nth(3).wait_for()
    shoot(page, "brought-french-dark")
    tab(page, 2)
    choose(page, "dataset-show", "toutes les images")
    page.get_by_role("button", name="Étiquettes et changements").click()
    page.locator("#bulk-tags button.tag").first.wait_for()
    shoot(page, "bulk-french-dark")
    page.context.close()

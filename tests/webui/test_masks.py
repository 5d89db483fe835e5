"""Masks painted over images: kept as the trainer reads them, undone exactly, kept by preprocess, and refused whole."""

import base64
import io
import json
import os
import shutil

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from preprocess.__main__ import main as preprocess
from preprocess.editing import history, masks
from preprocess.editing import prepared as datasets
from preprocess.editing.bulk import take_out
from sdxl_lora.errors import ConfigError
from tests.helpers.french import french
from webui.page import Page
from webui.pages.asked import Asked
from webui.runs.context import Context
from webui.runs.jobs import Jobs
from webui.settings.workspace import Workspace
from webui.widgets.dataset_html import card_html
from webui.widgets.events import as_json

FLAGS = ["--num_workers", "0", "--caption_model", "none", "--fallback_caption", "a photo"]


def prepare(raw, output, *flags: str) -> None:
    flags = flags or ("--resolution", "64")
    assert preprocess(["--input_dir", str(raw), "--output_dir", str(output), *FLAGS, *flags]) == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    projects = tmp_path_factory.mktemp("projects")
    (projects / "raw").mkdir()
    for number in range(3):
        image = Image.radial_gradient("L").rotate(40 * number).resize((96, 96 + 8 * number))
        image.convert("RGB").save(projects / "raw" / f"p{number}.png")
    prepare(projects / "raw", projects / "cat" / "data")
    return projects


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared / "cat", tmp_path / "cat")
    return tmp_path / "cat" / "data"


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*(folder / "images").iterdir(), folder / "metadata.jsonl"]}


def png(*white: tuple[int, int, int, int], size=(64, 64), grey: int = 255) -> bytes:
    """Black, with white where the boxes are."""
    mask, file = Image.new("L", size), io.BytesIO()
    for box in white:
        mask.paste(grey, box)
    mask.convert("RGBA").save(file, "PNG")
    return file.getvalue()


LEFT, ALL = png((0, 0, 32, 64)), png((0, 0, 64, 64))


def images(folder) -> dict[str, datasets.DatasetImage]:
    return {image.source: image for image in datasets.read_dataset(folder).images}


def paint(folder, source: str, data: bytes) -> bool:
    image = images(folder)[source]
    return masks.save_mask(folder, image.file_name, image.mask, data)


def pixels(folder, source: str) -> np.ndarray:
    return np.asarray(Image.open(folder / images(folder)[source].mask))


def test_a_painted_mask_is_what_the_trainer_reads_and_undo_gives_every_byte_back(folder):
    from sdxl_lora.data.image_dataset import ImageDataset
    from sdxl_lora.data.open_folder import open_folder

    before = files(folder)
    assert paint(folder, "p1.png", LEFT) is True
    assert paint(folder, "p1.png", png((0, 0, 64, 16), grey=128)) is True
    assert (pixels(folder, "p1.png")[:16] == 128).all() and not pixels(folder, "p1.png")[16:].any()
    dataset = ImageDataset(open_folder(folder), resolution=64, masked=True)
    sources = [row["source"] for row in datasets.rows_of(folder)]
    counts = {source: float(dataset.load(at)["mask"].mean()) for at, source in enumerate(sources)}
    assert counts == {"p0.png": 1, "p1.png": pytest.approx(128 / 255 / 4), "p2.png": 1}
    assert history.undo(folder) == (1, 0) and pixels(folder, "p1.png").mean() == 127.5
    assert history.undo(folder) == (1, 0) and files(folder) == before


def test_undo_of_a_mask_leaves_alone_what_else_has_changed_in_its_row_since(prepared, folder):
    paint(folder, "p0.png", LEFT)
    paint(folder, "p1.png", LEFT)
    image = images(folder)["p1.png"]
    datasets.save_text(folder, image.file_name, image.text, "by hand")
    prepare(prepared / "raw", folder)  # gives every row the column of masks
    assert history.undo(folder) == (1, 0)
    rows = {row["source"]: row for row in datasets.rows_of(folder)}
    assert rows["p1.png"]["text"] == "by hand" and "mask_file_name" not in rows["p1.png"]
    assert rows["p0.png"]["mask_file_name"] and not (folder / image.mask).exists()


def test_an_image_that_exif_turns_takes_a_mask_of_the_size_that_the_trainer_reads(tmp_path):
    from sdxl_lora.data.image_dataset import ImageDataset
    from sdxl_lora.data.open_folder import open_folder

    image = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "turned.jpg", "text": "a"}\n')
    with pytest.raises(ConfigError, match=r"it must have \(64, 96\)"):
        masks.save_mask(tmp_path, "turned.jpg", "", png((0, 0, 9, 9), size=(96, 64)))
    assert masks.save_mask(tmp_path, "turned.jpg", "", png((0, 0, 64, 48), size=(64, 96)))
    mask = ImageDataset(open_folder(tmp_path), resolution=64, masked=True).load(0)["mask"]
    assert float(mask.mean()) == pytest.approx(0.5, abs=0.05)


def test_white_everywhere_takes_the_mask_away(folder):
    assert paint(folder, "p0.png", ALL) is False and images(folder)["p0.png"].mask == ""
    assert paint(folder, "p0.png", LEFT) is True
    assert paint(folder, "p0.png", ALL) is False and images(folder)["p0.png"].mask == ""
    assert history.undo(folder) == (1, 0) and pixels(folder, "p0.png").mean() == 127.5


@pytest.mark.parametrize("way", ["undo", "white", "taken out"])
def test_with_its_last_mask_a_dataset_loses_the_column_of_masks(prepared, folder, way):
    paint(folder, "p1.png", LEFT)
    prepare(prepared / "raw", folder)
    assert all("mask_file_name" in row for row in datasets.rows_of(folder))
    if way == "undo":
        assert history.undo(folder) == (1, 0)
    elif way == "white":
        assert paint(folder, "p1.png", ALL) is False
    else:
        take_out(folder, (images(folder)["p1.png"].file_name, 0), images(folder)["p1.png"].text)
    assert not any("mask_file_name" in row for row in datasets.rows_of(folder))
    if way != "undo":
        assert history.undo(folder) == (1, 0) and pixels(folder, "p1.png").mean() == 127.5


def test_preparing_again_keeps_a_painted_mask_on_its_crop_and_says_where_it_fits_no_more(prepared, folder, capsys):
    paint(folder, "p1.png", LEFT)
    before = images(folder)["p1.png"].mask
    prepare(prepared / "raw", folder)
    assert images(folder)["p1.png"].mask == before and pixels(folder, "p1.png").mean() == 127.5
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["mask_file_name"] for row in rows] == [None, before, None], "a column of all rows"
    prepare(prepared / "raw", folder, "--resolution", "32", "--bucket_step", "32")
    assert images(folder)["p1.png"].mask == "" and not (folder / before).exists()
    assert any("painted by hand" in problem and before in problem for problem in images(folder)["p1.png"].problems)
    (kept,) = (folder / ".preprocess" / "taken_out").iterdir()
    assert np.asarray(Image.open(kept)).mean() == 127.5


def test_a_renamed_photo_keeps_its_painted_mask_and_other_pixels_under_its_name_do_not(prepared, folder, tmp_path):
    shutil.copytree(prepared / "raw", tmp_path / "raw")
    paint(folder, "p1.png", LEFT)
    before = images(folder)["p1.png"].mask
    (tmp_path / "raw" / "p1.png").rename(tmp_path / "raw" / "p9.png")
    prepare(tmp_path / "raw", folder)
    assert images(folder)["p9.png"].mask == before and pixels(folder, "p9.png").mean() == 127.5
    assert not any("by hand" in problem for problem in images(folder)["p9.png"].problems)
    shutil.copy(prepared / "raw" / "p2.png", tmp_path / "raw" / "p9.png")
    prepare(tmp_path / "raw", folder)
    assert images(folder)["p9.png"].mask == "" and any("by hand" in one for one in images(folder)["p9.png"].problems)


def test_an_image_that_was_left_out_comes_back_with_its_mask_and_a_caption_of_then(prepared, folder):
    paint(folder, "p1.png", LEFT)
    prepare(prepared / "raw", folder, "--resolution", "64", "--leave_out", "p1.png")
    assert sorted(images(folder)) == ["p0.png", "p2.png"] and not list((folder / "images").glob("*painted*"))
    prepare(prepared / "raw", folder, "--resolution", "64", "--trigger_word", "sks")
    assert pixels(folder, "p1.png").mean() == 127.5 and images(folder)["p1.png"].text == "sks, a photo"


def test_a_mask_of_a_dataset_made_with_masks_is_replaced_and_its_whiteness_stays(prepared, folder, tmp_path):
    output = tmp_path / "cat" / "masked"
    flags = ("--resolution", "64", "--masks", "alpha")
    prepare(prepared / "raw", output, *flags)
    own = images(output)["p2.png"].mask
    paint(output, "p2.png", LEFT)
    prepare(prepared / "raw", output, *flags)
    assert pixels(output, "p2.png").mean() == 127.5
    paint(output, "p2.png", ALL)
    prepare(prepared / "raw", output, *flags)
    assert images(output)["p2.png"].mask not in ("", own) and pixels(output, "p2.png").min() == 255


@pytest.mark.parametrize("name", ["my painted wall.png", "a-painted-0123456789ab.png"])
def test_a_photo_whose_name_says_painted_has_no_mask_by_hand(prepared, tmp_path, name):
    output = tmp_path / "data"
    (tmp_path / "raw").mkdir()
    shutil.copy(prepared / "raw" / "p0.png", tmp_path / "raw" / name)
    prepare(tmp_path / "raw", output, "--resolution", "64", "--masks", "alpha")
    assert images(output)[name].mask
    prepare(tmp_path / "raw", output)
    assert images(output)[name].mask == "" and not any("by hand" in one for one in images(output)[name].problems)
    assert len(list((output / "images").iterdir())) == 1 and not (output / ".preprocess" / "taken_out").exists()


def test_going_on_to_train_with_masks_lets_them_count_and_says_so(folder, monkeypatch):
    said, projects = [], folder.parent.parent
    monkeypatch.setattr("webui.page.tell", said.append)
    with gr.Blocks(analytics_enabled=False):
        page = Page(Context(Workspace(projects), Jobs(projects)))
    assert page.to_training("cat/data", "", False)[3] is False and said == []
    paint(folder, "p0.png", LEFT)
    assert page.to_training("cat/data", "", False)[3] is True
    assert said == ["Some of these images have masks: “Masked loss” is on."]
    paint(folder, "p0.png", ALL)
    assert page.to_training("cat/data", "", True)[3] is False
    assert said[1:] == ["None of these images has a mask: “Masked loss” is off."]


@pytest.mark.parametrize(
    ("file", "seen", "data", "words"),
    [
        (None, "", png((0, 0, 9, 9), size=(64, 72)), "it must have (64, 64) like the image"),
        (None, "", png(), "nothing of it would be learned"),
        (None, "", LEFT[:200], "cannot be read"),
        (None, "", b"GIF89a", "must be a PNG"),
        (None, "", LEFT + bytes(masks.MOST_BYTES), "must be a PNG of at most 4 MB"),
        (None, "images/other-painted-ab.png", LEFT, "was changed elsewhere"),
        ("images/none.png", "", LEFT, "no longer in the dataset"),
        ("../../raw/p0.png", "", LEFT, "no longer in the dataset"),
        ("metadata.jsonl", "", LEFT, "no longer in the dataset"),
    ],
)
def test_what_can_be_no_mask_is_refused_and_nothing_is_touched(folder, file, seen, data, words):
    before = files(folder)
    with pytest.raises(ConfigError) as error:
        masks.save_mask(folder, file or images(folder)["p0.png"].file_name, seen, data)
    assert words in str(error.value) and files(folder) == before


def test_only_over_an_image_that_a_browser_shows_can_a_mask_be_painted(folder):
    row = {**datasets.rows_of(folder)[0], "file_name": "images/a.bmp", "source": "a.bmp"}
    Image.new("RGB", (64, 64)).save(folder / "images" / "a.bmp")
    with open(folder / "metadata.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    cards = {source: card_html(folder, image) for source, image in images(folder).items()}
    offered = {source: "Paint a mask" in card for source, card in cards.items()}
    assert offered == {"p0.png": True, "p1.png": True, "p2.png": True, "a.bmp": False}


def test_a_row_that_names_a_file_elsewhere_gets_no_mask_there(folder):
    row = {"file_name": "../../outside.png", "text": "a", "source": "p", "sha256": "0"}
    shutil.copy(folder / images(folder)["p0.png"].file_name, folder.parent.parent / "outside.png")
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match="no longer in the dataset"):
        masks.save_mask(folder, "../../outside.png", "", LEFT)
    assert sorted(os.listdir(folder.parent.parent)) == ["cat", "outside.png"]


def test_the_page_answers_with_what_it_kept_or_why_it_did_not(folder):
    projects = folder.parent.parent
    with gr.Blocks(analytics_enabled=False):
        keep = as_json(Asked(Context(Workspace(projects), Jobs(projects))).keep_mask)
    row = {"dataset": "cat/data", "file": images(folder)["p0.png"].file_name, "seen": ""}

    def told(facts: dict | str, data: bytes | str) -> dict:
        text = data if isinstance(data, str) else base64.b64encode(data).decode()
        return json.loads(french(keep, json.dumps(facts), text))

    assert told(row, LEFT) == {"has": True}
    assert "a été modifié ailleurs" in told(row, LEFT)["error"]
    for facts, data in ((row, "%%%"), ({}, LEFT), ("text", LEFT), ({**row, "dataset": "../../etc"}, LEFT)):
        assert list(told(facts, data)) == ["error"]

"""The images that a person does not want: the same in the page's view and in the run, and those of one folder alone."""

import json
import re
from functools import partial

import gradio as gr
import pytest

from sdxl_lora.config.preprocess import PreprocessConfig
from tests.helpers.preparing import noise, preprocess
from webui.pages.upload_box import UploadBox
from webui.runs.context import Context
from webui.runs.jobs import Jobs
from webui.settings.workspace import Workspace
from webui.widgets.forms import Form, preprocess_config


@pytest.fixture
def places(tmp_path) -> Workspace:
    return Workspace(tmp_path / "projects", images=tmp_path / "photos")


@pytest.fixture
def box(places) -> UploadBox:
    """With a form of no more fields than `typed` gives."""
    names = ("input_dir", "output_dir", "leave_out")
    with gr.Blocks(analytics_enabled=False):
        box = UploadBox(Context(places, Jobs(places.projects)), gr.Dropdown([]))
    box.form = Form(PreprocessConfig, None, dict.fromkeys(names), partial(preprocess_config, places))
    return box


def typed(folder, leave_out="", dataset="dataset") -> tuple[str, ...]:
    """What arrives of the form, behind the project's name."""
    return "dog", str(folder), dataset, leave_out


def test_the_view_takes_the_same_images_out_as_the_run(box, places):
    places.images.mkdir()
    for seed, name in enumerate((" a.png", "a.png")):
        noise(seed=seed).save(places.images / name)
    entered = typed(places.images, " a.png")
    shown = box.show(9, *entered)
    out = [text for text in shown.split("<figure")[1:] if "left out by you" in text]
    assert [re.findall(r"<strong>(.*?)</strong>", text) for text in out] == [[" a.png"]]
    assert box.form.config(*entered).job.leave_out == (" a.png",)


def test_a_folder_brings_the_images_that_its_dataset_was_prepared_without(box, places, tmp_path):
    """And only a choice of another folder or dataset does: names that a person has just typed stay."""
    raw, other, dataset = tmp_path / "raw", tmp_path / "other", places.projects / "dog" / "dataset"
    raw.mkdir()
    for seed, name in enumerate(("a.png", " b.png", "c.png")):
        noise(seed=seed).save(raw / name)
    assert preprocess(raw, dataset, "--leave_out", " b.png", "c.png") == 0

    def listed(before, *entered, dataset="dataset"):
        return box.listed(json.dumps({"folder": str(before), "dataset": dataset}), *entered)

    assert box.listed("null", *typed(raw)) == box.listed("", *typed(raw)) == " b.png\nc.png"
    assert listed(other, *typed(f'"{raw}"', "x.png")) == " b.png\nc.png"
    assert listed(raw, *typed(other, "c.png")) == ""
    assert listed(other, *typed(raw, "a.png", "second")) == ""
    assert listed(raw, *typed("", "a.png", "no/name")) == ""
    assert listed(raw, *typed(f"{raw} ", "a.png")) == gr.skip()
    assert listed(raw, *typed(raw, "a.png"), dataset="second") == " b.png\nc.png"
    assert listed(raw, *typed(raw, "a.png", "second")) == gr.skip(), "a new dataset of it, of which nothing is known"
    (dataset / "preprocess_report.json").write_text('{"settings": {"input_dir": 7, "leave_out": [7]}}')
    assert listed(other, *typed(raw)) == ""


def test_images_brought_into_another_folder_do_not_keep_the_names_of_the_one_before(box, places):
    folder = places.projects / "dog" / "images"
    folder.mkdir(parents=True)
    noise().save(folder / "a.png")
    assert box.brought("dog", "images", 9, *typed(places.images, "a.png"))[1] == ""
    assert box.brought("dog", "images", 9, *typed(folder, "a.png"))[1] == gr.skip()

"""All runs in a table, compared, renamed, noted and set aside: nothing of one is lost, none at work is touched."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.metadata import lora_metadata
from sdxl_lora.run.events import EventLog
from sdxl_lora.select.__main__ import parse
from sdxl_lora.tools.__main__ import main as tools
from tests.helpers.adapters import tiny_with_lora
from tests.helpers.configs import flat_train_config
from tests.helpers.french import french
from webui.figures.recommendation import recommendation_of
from webui.figures.run_table import differing, newest_samples, run_rows
from webui.figures.upkeep import keep_note, note_of, rename_run, set_aside
from webui.pages.recommend_box import reason
from webui.pages.run_table import comparison_html
from webui.pages.tools_box import tool_words
from webui.runs.context import Context
from webui.runs.jobs import Jobs
from webui.runs.launch import new_job, read_config, select_job
from webui.runs.listing import find_runs, lora_files
from webui.settings.workspace import Workspace
from webui.widgets import templates


@pytest.fixture
def context(tmp_path) -> Context:
    return Context(Workspace(tmp_path / "projects"), Jobs(tmp_path / "projects"))


def made(context: Context, name: str, losses=(0.5, 0.3), state: str = "done", **settings) -> Path:
    """A run as a training leaves it, with one picture of a prompt, and the job that trained it."""
    run = context.places.run_folder(*name.split("/"))
    (run / "samples").mkdir(parents=True)
    settings = {"train_data_dir": "data", "validation_prompt": ("a <b>cat",), **settings}
    (run / "config.yaml").write_text(to_yaml(flat_train_config(str(run), **settings)))
    (run / "status.json").write_text(json.dumps({"state": state, "step": len(losses), "pid": os.getpid()}))
    log = EventLog(run / "events.jsonl")
    for step, loss in enumerate(losses, start=1):
        log.write("step", step=step, loss=loss)
    Image.new("RGB", (8, 8)).save(run / "samples" / f"step-{len(losses):06}-prompt-0-image-0.png")
    for name in ("one-best", "one", "one-recommended", "pytorch_lora_weights"):
        (run / f"{name}.safetensors").write_bytes(name.encode())
    context.jobs.write(dataclasses.replace(new_job("train", str(run)), state="ended", exit_code=0))
    return run


def test_the_table_says_when_how_far_how_well_and_on_which_base(context):
    run = made(context, "cat/one", pretrained_model_name_or_path="models/juggernaut.safetensors")
    keep_note(run, " a <i>good one\n")
    [row] = run_rows(context)
    assert (row.name, row.state, row.step, row.base, row.note) == (
        "cat/one", "done", 2, "juggernaut.safetensors", "a <i>good one",
    )  # fmt: skip
    assert row.loss == pytest.approx(0.4) and abs(row.changed - time.time()) < 3600
    html = templates.runs.listed([row])
    assert "a &lt;i&gt;good one" in html and "0.4" in html and "terminé" in french(templates.runs.listed, [row])
    (run / "config.yaml").write_bytes(b"\xff: [")
    (run / "events.jsonl").write_text('{"event": "step", "loss": "x"}\nrubbish')
    [row] = run_rows(context)
    assert row.base == "" and row.loss is None


def test_two_runs_are_compared_by_what_differs_their_curves_and_their_newest_pictures(context, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    one = made(context, "cat/one", rank=8)
    two = made(context, "cat/two", losses=(1.0, 0.5, 0.2), learning_rate=3e-4, seed=7)
    told = differing([one, two])
    assert list(told) == ["seed", "rank", "learning_rate"] and told["learning_rate"] == [1e-4, 3e-4]
    assert differing([one, one]) == {}
    [(prompt, cells)] = newest_samples([one, two]).items()
    assert prompt == "a <b>cat" and [cell[0] for cell in cells] == [2, 3]
    html = comparison_html([one, two])
    assert "cat/one" in html and "0.0003" in html and html.count("<img") == 2 and "<b>cat" not in html
    assert "data-runs" in html and "mêmes" in french(comparison_html, [one, one])


def test_a_renamed_run_keeps_its_files_its_jobs_and_the_name_of_its_lora(context):
    run = made(context, "cat/one")
    before = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    to = rename_run(context, run, "better")
    assert to == run.with_name("better") and not run.exists()
    assert {path.name: path.read_bytes() for path in to.glob("*.safetensors")} == before
    assert read_config(TrainConfig, to / "config.yaml").lora_name == "one", "it goes on under its LoRA's name"
    assert [job.target for job in context.jobs.all()] == [str(to)] and context.jobs.of(run) == []
    assert find_runs(context.places.projects, context.jobs) == [to]
    assert next(path.name for path in lora_files(to)) == "one.safetensors", "not that of another step"


def test_a_run_at_work_or_a_bad_name_is_refused_and_nothing_has_changed(context):
    run, other = made(context, "cat/one"), made(context, "cat/two")
    for name in ("two", "../x", "", "a/b"):
        with pytest.raises(ConfigError):
            rename_run(context, run, name)
    context.jobs.write(new_job("draw", str(run)))
    (other / "status.json").write_text(json.dumps({"state": "training", "step": 2, "pid": os.getpid()}))
    for busy in (run, other):
        for do in (lambda at: rename_run(context, at, "new"), lambda at: set_aside(context, at)):
            with pytest.raises(ConfigError, match="is running or queued"):
                do(busy)
    assert run.is_dir() and other.is_dir() and note_of(run) == ""
    with pytest.raises(ConfigError, match="no folder yet"):
        keep_note(run.with_name("none"), "words")


def test_a_deleted_run_is_gone_from_the_page_and_whole_where_it_was_moved(context):
    run = made(context, "cat/one")
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    where = set_aside(context, run)
    assert find_runs(context.places.projects, context.jobs) == [] and context.jobs.all() == []
    moved = where / "one"
    assert {path.relative_to(moved): path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before
    assert len(list((where / "jobs").iterdir())) == 1


@pytest.fixture(scope="module")
def dog(tmp_path_factory) -> Path:
    _, models = tiny_with_lora(rank=3, targets="attention")
    return write_lora_files(tmp_path_factory.mktemp("dog"), "dog", models, "fp32", lora_metadata("dog"))[0]


@pytest.mark.parametrize("tool", ["show", "check", "resize", "convert", "merge"])
def test_a_tool_is_asked_for_as_its_command_line_has_it(tool, dog, two_layers, tmp_path):
    assert tools(tool_words(tool, dog, tmp_path, str(two_layers), 2, 0.5)) == 0
    written = [path.name for path in tmp_path.iterdir()]
    expected = {"resize": ["dog-rank2.safetensors"], "convert": ["dog-diffusers.safetensors"], "merge": ["dog-merged"]}
    assert written == expected.get(tool, [])


def test_a_tool_is_not_queued_with_numbers_that_are_none_or_a_base_that_is_elsewhere(tmp_path):
    for tool, base, rank, weight in (
        ("resize", "b", None, 1), ("resize", "b", 0, 1), ("merge", str(tmp_path), 8, None),
        ("merge", str(tmp_path), 8, 9), ("merge", "stabilityai/none", 8, 1),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"must be|is not on this machine"):
            tool_words(tool, tmp_path / "cat.safetensors", tmp_path, base, rank, weight)


def selected(run: Path, recommended, *cells) -> None:
    (run / "select").mkdir(exist_ok=True)
    told = [dict(zip(("step", "strength", "score", "learned"), cell, strict=True)) for cell in cells]
    told = [{**cell, "leak": None, "prompt_lost": 0.1, "copies": [{}]} for cell in told]
    content = {"cells": told, "recommended": recommended, "not_measured": ["leak: <b>"], "left_out": []}
    path = run / "select" / "select.json"
    path.write_text(json.dumps(content))
    os.utime(path, ns=(0, time.time_ns()))


def test_the_choice_is_asked_for_as_its_command_line_has_it(context):
    run = made(context, "cat/one")
    plain = parse(select_job(run, "", "").command[3:])
    assert (plain.run_dir, plain.similarity_model, plain.clip_model) == (run, None, None)
    asked = parse(select_job(run, "none", "--odd name").command[3:])
    assert (asked.similarity_model, asked.clip_model) == ("none", "--odd name")


def test_a_recommendation_is_shown_with_its_reason(context):
    run = made(context, "cat/one")
    assert recommendation_of(run) is None
    cells = ((0, 0.0, None, 0.0), (100, 0.8, 0.5, 0.6), (200, 1.0, 0.505, 0.7))
    selected(run, {"step": 100, "strength": 0.8}, *cells)
    found = recommendation_of(run)
    assert len(found.cells) == 2 and found.chosen.step == 100 and found.best.step == 200
    words = reason(found)
    assert "step 100 at strength 0.8" in words and "Step 200 at strength 1 scores 50.5" in words and "mildest" in words
    html = templates.runs.found(found, words, run)
    told = json.loads((run / "select" / "select.json").read_text())
    told["cells"][1] |= {"images_per_prompt": 8}
    told["cells"][2] |= {"images_per_prompt": 2}
    (run / "select" / "select.json").write_text(json.dumps(told))
    os.utime(run / "select" / "select.json", ns=(0, time.time_ns()))
    assert recommendation_of(run).best.step == 100, "a score of fewer images is of the first round"
    assert html.count('class="chosen"') == 1 and "leak: &lt;b&gt;" in html and "Recommandé" in french(reason, found)
    selected(run, None, *cells)
    assert "loses as much as it learns" in reason(recommendation_of(run))
    selected(run, None, (100, 0.8, None, None))
    assert "could not be measured" in reason(recommendation_of(run))
    for damaged in ("{", "[]", '{"cells": 3}'):
        (run / "select" / "select.json").write_text(damaged)
        os.utime(run / "select" / "select.json", ns=(0, time.time_ns()))
        assert recommendation_of(run) is None

"""Answers to the page's look once a second: only news, whatever there is of old jobs and runs. Without a browser."""

import dataclasses
import json

import gradio as gr
import pytest

from webui.page import Page
from webui.runs.context import Context
from webui.runs.jobs import Jobs
from webui.runs.launch import new_job
from webui.settings.workspace import Workspace


@pytest.fixture
def page(tmp_path):
    run = tmp_path / "cat" / "runs" / "one"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "done", "step": 4}))
    with gr.Blocks(analytics_enabled=False):
        return Page(Context(Workspace(tmp_path), Jobs(tmp_path)))


def heard(page: Page, seen: str = "") -> tuple[dict, str, list]:
    """News, what the browser then brings along, and the lists that have changed."""
    text, *lists = page.live.look(seen, "", "cat/one", "", "")
    told = json.loads(text) if text else {"news": {}, "seen": json.loads(seen or "[]")}
    return told["news"], json.dumps(told["seen"]), [update for update in lists if update != gr.skip()]


def test_what_has_not_changed_is_not_told_again(page, tmp_path):
    news, seen, lists = heard(page)
    assert any("cat/one" in str(update) for update in news.values()) and len(lists) == len(page.live.lists)
    assert heard(page, seen) == ({}, seen, [])
    (tmp_path / "cat" / "runs" / "one" / "status.json").write_text(json.dumps({"state": "done", "step": 5}))
    news, after, lists = heard(page, seen)
    assert list(news) == [str(page.live.outputs.index(page.runs.progress))] and lists == []
    assert heard(page, after) == ({}, after, [])


def test_a_browser_that_brings_along_what_is_none_of_ours_hears_everything(page):
    everything = heard(page)
    for seen in ("{", "7", "[1]", '{"a": 1}', "null"):
        assert heard(page, seen) == everything


def test_no_job_that_is_over_is_read_again(page, monkeypatch):
    jobs = page.context.jobs
    for number in range(30):
        job = dataclasses.replace(new_job("caption", "data"), state="ended", exit_code=0)
        jobs.write(dataclasses.replace(job, created=float(number)))
    _, seen, _ = heard(page)
    read = []
    monkeypatch.setattr("webui.runs.jobs.job_of", lambda facts: read.append(facts))
    assert heard(page, seen) == ({}, seen, []) and read == []
    assert len(jobs.all()) == 30

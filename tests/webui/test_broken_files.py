"""One file that a person, a full disk or another version has broken silences no more of the page than itself."""

import json
import os
import shutil
import time
import types

import httpx
import pytest

from sdxl_lora.operating_system import is_alive
from sdxl_lora.run.status import read_status
from tests.helpers.ui_server import Server
from webui.runs.jobs import Jobs

NOT_UTF8 = b'{"file_name": "images/a.png", "text": "caf\xe9", "state": "done"}\n'
WRONG = [b"", b"{", b"null", b"[1, 2]", b'"x"', b"7", b"\x00\xff\xfe", NOT_UTF8, b"{}"]
STATUSES = [
    {"state": "paused", "step": 4}, {"state": 7, "step": "four", "pid": "x", "heartbeat": "now", "reason": 5},
    {"state": None, "step": None}, {"state": "training", "pid": -3, "step": 1e300, "last_checkpoint": 3},
    {"state": "training", "pid": 2**80}, {"state": "<script>", "reason": ["<script>"]},
]  # fmt: skip
EVENTS = [
    {"event": "step"}, {"event": "step", "step": "x", "time": 1}, {"event": "step", "step": 1, "time": "y"},
    {"event": "step", "step": 2, "time": 3, "loss": "high"}, {"event": "step", "step": 3, "time": 1e300, "loss": 1},
    {"event": "started", "total_steps": "many"}, {"event": "message", "time": "then", "text": 5}, {"event": "samples"},
    {"event": "samples", "time": 1, "prompts": 7}, {"event": "message", "time": 1e40}, {"event": "validation"},
    {"event": "step", "step": 4, "time": 5, "loss": None, "learning_rate": [1], "epoch": "one", "memory_gib": "x"},
]  # fmt: skip
ROWS = [
    {"file_name": "images/a.png"}, {"file_name": "images/a.png", "text": None}, {"text": "no file"},
    {"file_name": "x" * 5000, "text": ["y"]}, {"file_name": 7},
    {"file_name": "images/a.png", "text": 5, "source": 9},
]  # fmt: skip
FACTS = {"file_name": "images/a.png", "text": "x", "original_size": [9, 9], "bucket": [9, 9], "crop_top_left": [0, 0]}
REPORTS = [
    {"rows": [FACTS, {"file_name": 3}, 7], "settings": 5, "warnings": [{}], "left_out": [3, {}]},
    {"rows": [{**FACTS, "cut_off": 1, "tokens": 2, "original_size": [0, 0]}], "settings": {"trigger_word": ["x"]}},
    {"rows": [{**FACTS, "cut_off": "1", "tokens": None}], "settings": {"background": "white", "resolution": "x"}},
    {"rows": {"a": 1}, "warnings": "none", "left_out": None, "settings": {"caption_model": 3}},
    {"rows": [{**FACTS, "cut_off": 1, "tokens": 2, "thumbnail": "../../x" * 900}], "settings": None},
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("page"))
    good = server.projects / "cat" / "runs" / "good"
    good.mkdir(parents=True)
    (good / "status.json").write_text('{"state": "done", "step": 4}')
    yield server
    server.kill()


@pytest.fixture
def page(server):
    """Asks for a look; `run` and `data` may be broken at will."""
    run, data = server.projects / "cat" / "runs" / "bad", server.projects / "cat" / "dataset"
    for folder in (run, data):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    (run / "status.json").write_text('{"state": "done", "step": 4}')
    (data / "metadata.jsonl").write_text('{"file_name": "images/a.png", "text": "fine"}\n')
    client = httpx.Client(timeout=60)

    page = types.SimpleNamespace(run=run, data=data, projects=server.projects)
    before = len(server.log.read_text())

    def look(chosen: str) -> str:
        data = ["", "", chosen, "cat/dataset", chosen]
        answer = client.post(server.url + "/gradio_api/run/sdxl_lora_look", json={"data": data, "session_hash": "s"})
        assert answer.status_code == 200
        return answer.text

    def shows_everything() -> str:
        assert "pill done" in look("cat/good")
        said = look("cat/bad")
        assert server.log.read_text()[before:] == ""
        return said

    page.shows_everything = shows_everything
    return page


def test_a_runs_status_whatever_stands_in_it(page):
    for content in [*WRONG, *(json.dumps(status).encode() for status in STATUSES)]:
        (page.run / "status.json").write_bytes(content)
        said = page.shows_everything()
        assert "cat/bad" in said and "<script" not in said
    (page.run / "status.json").write_text('{"state": "paused", "step": 4}')
    assert "paused" in page.shows_everything(), "a state of another version is told in its own word"


def test_a_runs_events_and_settings_whatever_stands_in_them(page):
    lines = "".join(json.dumps(event) + "\n" for event in EVENTS)
    good = '{"event": "step", "step": 9, "time": 9, "loss": 0.25}\n'
    for content in [*WRONG, (lines + good).encode()]:
        (page.run / "events.jsonl").unlink(missing_ok=True)
        (page.run / "events.jsonl").write_bytes(content)
        said = page.shows_everything()
    assert "0.25" in said, "what is sound is shown"
    for content in WRONG:
        (page.run / "config.yaml").write_bytes(content)
        os.utime(page.run / "config.yaml", ns=(0, WRONG.index(content)))
        page.shows_everything()
    for name in ("checkpoint-5", "samples", "pytorch_lora_weights.safetensors"):
        (page.run / name).write_bytes(b"not what it is called")
        page.shows_everything()


def test_a_datasets_files_whatever_stands_in_them(page):
    rows = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    for content in [*WRONG, rows]:
        (page.data / "metadata.jsonl").write_bytes(content)
        said = page.shows_everything()
    assert "images/a.png" in said
    (page.data / "metadata.jsonl").write_bytes(b'{"file_name": "images/a.png", "te')
    assert "metadata.jsonl:1:" in page.shows_everything(), "the line to be mended is named"
    (page.data / "metadata.jsonl").write_text(json.dumps({"file_name": "a\0b", "text": "x"}))
    assert "metadata.jsonl:1: a NUL at position 1" in page.shows_everything()
    (page.data / "metadata.jsonl").write_text('{"file_name": "images/a.png", "text": "x"}\n')
    for content in [*WRONG, *(json.dumps(report).encode() for report in REPORTS)]:
        (page.data / "preprocess_report.json").write_bytes(content)
        assert "images/a.png" in page.shows_everything()


def test_the_pages_own_files_whatever_stands_in_them(page):
    jobs = Jobs(page.projects)
    good = {"id": "a", "kind": "draw", "target": str(page.run), "command": [], "created": time.time(), "state": "ended"}
    for number, content in enumerate([
        *WRONG, *(json.dumps({**good, **odd}).encode() for odd in (
            {"kind": "dance"}, {"state": "asleep"}, {"created": "x"}, {"target": 7}, {"more": 1}, {"pid": "x"}, {},
        )),
    ]):  # fmt: skip
        folder = jobs.folder_of(f"job-{number}")
        folder.mkdir()
        (folder / "job.json").write_bytes(content)
        (folder / "config.yaml").write_bytes(WRONG[number % len(WRONG)])
        page.shows_everything()
    for content in WRONG:
        (page.projects / ".page" / "order.json").write_bytes(content)
        page.shows_everything()


def test_what_is_a_folder_in_place_of_a_file_or_may_not_be_read(page):
    for path in (page.run / "status.json", page.data / "metadata.jsonl"):
        path.unlink()
        path.mkdir()
        page.shows_everything()
    for name in ("events.jsonl", "config.yaml"):
        (page.run / name).mkdir()
        page.shows_everything()
    (page.data / "preprocess_report.json").symlink_to("nowhere")
    (page.projects / "cat" / "loop").symlink_to("loop")
    page.shows_everything()


def test_a_status_that_is_no_object_is_none(tmp_path):
    (tmp_path / "status.json").write_text("[1]")
    assert read_status(tmp_path) == {} and not is_alive(-1) and not is_alive(2**80)

"""Events, logs and images of a run as the page shows them."""

import dataclasses
import json
import os
import re
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import EventLog
from tests.helpers.french import french
from webui.runs.jobs import Jobs
from webui.runs.launch import new_job
from webui.runs.listing import RunState, samples_of, without_launchers
from webui.runs.run_history import History, smoothed
from webui.server.served import publish_image
from webui.widgets import html as show
from webui.widgets.templates import css_text, parts


def test_a_history_reads_on_and_forgets_what_a_resumed_run_did_again(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    history = History(tmp_path / "events.jsonl")
    assert history.read().steps == []
    log.write("started", total_steps=20)
    for step in (1, 2, 3, 4):
        log.write("step", step=step, loss=float(step))
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"time": 1, "event": "st')
    assert [event["step"] for event in history.read().steps] == [1, 2, 3, 4] and history.total_steps == 20
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'ep", "step": 3, "loss": 9.0}\nrubbish\n')
    assert [event["loss"] for event in history.read().steps] == [1.0, 2.0, 9.0]
    assert len(history.read().steps) == 3
    (tmp_path / "events.jsonl").unlink()
    EventLog(tmp_path / "events.jsonl").write("step", step=1, loss=5.0)
    assert [event["loss"] for event in history.read().steps] == [5.0]


def test_the_speed_is_that_of_the_last_steps_whatever_came_between(tmp_path):
    history = History(tmp_path / "none")
    history.total_steps = 20
    for every in (1, 2):
        told = range(every, 11, every)
        history.steps = [{"event": "step", "step": n, "time": 2.0 * n + (100 if n > 5 else 0)} for n in told]
        assert history.seconds_per_step() == 2 and history.seconds_left() == 20


def test_a_sentence_says_how_long_it_takes_and_what_is_drawn_at_the_end(tmp_path):
    log, history = EventLog(tmp_path / "events.jsonl"), History(tmp_path / "events.jsonl")
    log.write("started", total_steps=1200, draws=8)
    log.write("step", step=201, loss=0.1, seconds_left=135.0)
    words = show.sentence(RunState("training", 201, ""), history.read())
    assert re.match(r"Step 201 of 1,200: about 2 min 1\d s to go, including samples and saving\. The last 8 ", words)
    assert "Les 8 dernières images" in french(show.sentence, RunState("training", 201, ""), history)
    log.write("started", total_steps=1200, draws=0)
    assert show.sentence(RunState("training", 201, ""), history.read()).endswith("including samples and saving.")


def test_smoothing_of_equal_values_is_that_value_from_the_first_step_on():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([0.0] * 50 + [1.0] * 200)[-1] == pytest.approx(1, abs=1e-3)


def test_what_a_run_and_a_caption_say_is_escaped():
    evil = '<script>alert(1)</script><img src=x onerror="x">'
    history = History(Path("none"))
    history.messages.append({"time": 0, "event": "message", "text": evil})
    state = RunState("failed", 3, evil)
    pages = [
        show.happened(history),
        show.console([evil, f"error: {evil}"]),
        show.progress(evil, state, history),
        show.gallery(Path("x"), {(0, 0): {1: Path("none.png")}}, (evil,), 0),
    ]
    for page in pages:
        assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert "</style" not in css_text("x</style><script>") and '"' not in css_text('"}*{}')


def test_the_logs_are_in_the_order_of_reading_and_coloured_by_level():
    history = History(Path("none"))
    history.messages.extend([
        {"time": 0, "event": "message", "text": "first"}, {"time": 1, "event": "checkpoint", "step": 5},
        {"time": 2, "event": "failed", "reason": "disk"},
    ])  # fmt: skip
    html = show.happened(history) + show.console(["fine", "UserWarning: hm", "error: no"])
    said = [html.index(words) for words in ("first", "step 5", "disk", "fine", "hm", "error: no")]
    assert said == sorted(said)
    assert 'class="error"' in html and 'class="warning"' in html and 'class="good"' in html


def test_a_stopped_run_says_where_and_what_was_saved():
    history = History(Path("none"))
    stopped = show.progress("cat", RunState("stopped", 7, "x", "checkpoint-7"), history)
    assert "Stopped at step 7, saved checkpoint-7." in stopped
    assert "Arrêté au pas 7" in french(show.progress, "cat", RunState("stopped", 7, "x", "checkpoint-7"), history)


def test_a_preparation_that_left_pictures_out_says_so_on_its_card(tmp_path):
    jobs, data = Jobs(tmp_path), tmp_path / "cat" / "data"
    data.mkdir(parents=True)
    job = dataclasses.replace(new_job("prepare", str(data)), state="ended", exit_code=0, started=0.0)
    jobs.write(job)
    report = data / "preprocess_report.json"
    for number, (counts, said) in enumerate([
        ({"left_out": 18, "found": 20}, "18 of 20 images left out"), ({"left_out": 0, "found": 20}, ""), ("?", ""),
    ]):  # fmt: skip
        report.write_text(json.dumps({"counts": counts}))
        os.utime(report, (number + 1, number + 1))
        card = show.job_card(jobs, job)
        assert said in card and ("partly" in card) == bool(said)
    job = dataclasses.replace(job, started=100.0)
    report.write_text(json.dumps({"counts": {"left_out": 18, "found": 20}}))
    os.utime(report, (50, 50))
    assert "left out" not in show.job_card(jobs, job), "the report is of an earlier preparation"


LAUNCHER = [
    "Traceback (most recent call last):", "  File 'x'", "subprocess.CalledProcessError: Command '['python']' ...",
]  # fmt: skip


def test_a_console_holds_no_traceback_of_the_launcher_and_keeps_the_programs_own():
    own = ["step 1", "Traceback (most recent call last):", "  File 'y'", "ValueError: odd", "and on"]
    assert without_launchers([*own, *LAUNCHER]) == own
    assert without_launchers([*own, "torch.distributed.elastic.ChildFailedError:", "====="]) == own
    assert without_launchers(own) == own and without_launchers([]) == []


def test_samples_are_files_that_open_at_full_size_with_all_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    samples = tmp_path / "projects" / "cat" / "runs" / "one" / "samples"
    samples.mkdir(parents=True)
    for step in range(10):
        Image.new("RGB", (800, 600), (step, 0, 0)).save(samples / f"step-{step:06}-prompt-0-image-0.png")
    html = show.gallery(samples, samples_of(samples.parent), ("a cat",), 7)
    assert "base64" not in html and len(html) < 8_000
    urls = re.findall(r'src="gradio_api/file=([^"]+)"', html)
    assert len(urls) == show.SHOWN_SAMPLE_STEPS
    with Image.open(urls[0]) as small:
        assert small.size == (384, 288)
    steps = json.loads(unescape(re.search(r'data-steps="([^"]+)"', html)[1]))
    pattern = unescape(re.search(r'data-path="([^"]+\*[^"]+)"', html)[1])
    whole = [Path(pattern.replace("*", part)) for _, part in steps]
    assert steps[0][0] == "step 9" and whole == sorted(samples.iterdir(), reverse=True)
    assert Path(publish_image(whole[-1], tmp_path / "projects")).read_bytes() == whole[-1].read_bytes()
    assert publish_image(whole[-1], tmp_path / "projects") == publish_image(whole[-1], tmp_path / "projects")


def test_no_file_but_an_image_of_the_projects_is_handed_out(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    projects = tmp_path / "projects"
    projects.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    (projects / "link.png").symlink_to(tmp_path / "other.png")
    (projects / "config.yaml").write_text("a: 1")
    (projects / "page.svg").write_text("<svg/>")
    for name in ("link.png", "../other.png", "config.yaml", "page.svg", "none.png", ""):
        with pytest.raises(ConfigError, match="no longer exists, or is not an image"):
            publish_image(projects / name, projects)
    assert not (tmp_path / "served").exists()
    (projects / "broken.png").write_bytes(b"not an image")
    assert parts.image(projects / "broken.png") == parts.image(None) == '<span class="missing"></span>'

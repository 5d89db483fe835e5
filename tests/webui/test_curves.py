"""The numbers that plots are drawn of: what is told in parts is what is told as a whole."""

import json

import gradio as gr

from sdxl_lora.run.events import EventLog
from tests.helpers.paths import ROOT
from webui.figures.curves import MOST_POINTS, answer, curves, thinned
from webui.pages.asked import Asked
from webui.runs.context import Context
from webui.runs.jobs import Jobs
from webui.runs.run_history import History
from webui.settings.workspace import Workspace
from webui.widgets.templates import runs


def added(known: dict, told: dict) -> dict:
    """What plots.js makes of an answer, for what every step tells."""
    before = {} if told["is_new"] else known
    rows = {name: [*before.get("rows", {}).get(name, []), *values] for name, values in told["rows"].items()}
    return {**told, "rows": rows if told["rows"]["step"] else before.get("rows", told["rows"])}


def test_what_is_told_bit_by_bit_is_the_whole_also_through_a_resume(tmp_path):
    log, history, known = EventLog(tmp_path / "events.jsonl"), History(tmp_path / "events.jsonl"), {}
    for step, is_new in ((1, True), (2, False), (3, False), (2, True), (3, True), (4, False)):  # from step 1 again
        log.write("step", step=step, loss=step / 3, grad_norm=float("nan") if step == 2 else 1.0, epoch=0.5)
        if step == 3:
            log.write("validation", step=step, validation_loss=0.25)
        told = curves(history.read(), known)
        assert told["is_new"] == is_new
        known = added(known, told)
    assert known["rows"] == curves(history, {})["rows"]
    assert known["rows"]["step"] == [1, 2, 3, 4] and known["rows"]["grad_norm"] == [1.0, None, 1.0, 1.0]
    assert known["rows"]["loss"][0] == 0.33333 and "epoch" not in known["rows"]
    assert curves(history, {})["validations"] == {"step": [3], "validation_loss": [0.25]}
    again = curves(history, known)
    assert again["rows"] == {"step": []} and not again["is_new"]
    other = curves(History(tmp_path / "events.jsonl").read(), known)  # the page was started anew meanwhile
    assert not other["is_new"] and other["rows"] == {"step": []}


def test_a_run_that_was_deleted_is_told_of_no_more_and_another_of_its_name_from_its_start(tmp_path):
    path = tmp_path / "events.jsonl"
    history = History(path)
    assert not curves(history.read(), {"token": history.token})["is_new"], "it has not begun yet"
    EventLog(path).write("step", step=7, loss=0.5)
    known = curves(history.read(), {})
    version = history.version
    path.unlink()
    told = curves(history.read(), known)
    assert told["is_new"] and told["rows"] == {"step": []} and history.version > version
    EventLog(path).write("step", step=1, loss=0.25)
    assert curves(history.read(), told)["rows"] == {"step": [1], "loss": [0.25]}


def test_a_long_run_is_thinned_and_keeps_its_last_step():
    history = History(None)
    history.steps = [{"event": "step", "step": n, "loss": 1.0} for n in range(1, 20_001)]
    steps = curves(history, {})["rows"]["step"]
    assert len(steps) <= MOST_POINTS and steps[-1] == 20_000
    assert thinned([]) == [] and thinned([{"step": 1}]) == [{"step": 1}]


def test_a_browser_that_asks_for_odd_things_gets_no_other_file_and_no_error(tmp_path):
    run = tmp_path / "cat" / "runs" / "one"
    run.mkdir(parents=True)
    EventLog(run / "events.jsonl").write("step", step=1, loss=0.5)
    with gr.Blocks(analytics_enabled=False):
        ask = Asked(Context(Workspace(tmp_path), Jobs(tmp_path))).curves
    for odd in ("", "{", "7", "[]", '{"../x": {}}', '{"cat/../one": {}}', '{"/etc": null}'):
        assert ask(odd) == {}
    for known in (None, {}, {"token": 3, "step": "x"}, {"step": 10**9}):
        told = ask(json.dumps({"cat/one": known}))
        assert told["cat/one"]["rows"] == {"step": [1], "loss": [0.5]}


def test_names_of_runs_are_escaped_and_the_library_fetches_nothing():
    library = (ROOT / "webui" / "widgets" / "uplot" / "uPlot.iife.min.js").read_text(encoding="utf-8")
    assert "http" not in library.replace("https://github.com/leeoniya/uPlot", "")
    assert "<b" not in runs.plots(['<b>"'])
    assert answer({}, {}) == {}

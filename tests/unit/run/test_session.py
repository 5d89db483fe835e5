"""A run's directory: one run at a time, status, stop, events."""

import json
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from sdxl_lora.errors import ConfigError, NonFiniteError
from sdxl_lora.run.events import EventLog, follow_events, read_events
from sdxl_lora.run.session import Run, read_status
from sdxl_lora.run.stop import StopRequest
from tests.helpers.paths import ROOT


def test_status_tells_how_a_run_goes_and_ends(tmp_path):
    with Run(tmp_path) as run:
        run.update(state="training", step=3)
        status = read_status(tmp_path)
        assert (status["state"], status["step"], status["pid"]) == ("training", 3, os.getpid())
        assert status["heartbeat"] > 0
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["exit_code"]) == ("done", 0)
    with pytest.raises(NonFiniteError), Run(tmp_path):
        raise NonFiniteError("loss nan")
    status = read_status(tmp_path)
    assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 6, "loss nan")
    assert [event["reason"] for event in read_events(tmp_path / "events.jsonl", "failed")] == ["loss nan"]


def test_a_second_run_in_the_same_directory_is_refused_with_the_firsts_pid(tmp_path):
    with Run(tmp_path), pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
        Run(tmp_path)
    with Run(tmp_path):
        pass


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        Run(tmp_path / "file" / "run")


def test_stop_comes_from_a_file_or_a_signal_and_an_old_file_is_forgotten(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "stop").touch()
    with Run(tmp_path), StopRequest(tmp_path) as stop:
        assert stop.reason() is None
        (tmp_path / "stop").touch()
        assert stop.reason() == "stop file"
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason() == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_clusters_warning_stops_and_a_second_one_does_not_kill(tmp_path):
    with Run(tmp_path), StopRequest(tmp_path) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.reason() == "SIGUSR1"


def test_events_are_read_back_and_a_line_being_written_is_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("step", step=1, loss=0.5)
    log.write("message", text="é\n日本")
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "step"})[:-3])
    assert [event["event"] for event in read_events(path)] == ["step", "message"]
    assert next(read_events(path, "message"))["text"] == "é\n日本"


def test_events_are_followed_while_they_are_written_in_pieces(tmp_path):
    """A writer that flushes in the middle of lines and characters; the reader sees each event once and whole."""
    path = tmp_path / "events.jsonl"
    lines = [json.dumps({"event": "step", "step": n, "text": "日本é"}, ensure_ascii=False).encode() for n in range(200)]
    data = b"\n".join([*lines[:100], b"{damaged", b"[1]", *lines[100:]]) + b"\n"
    path.touch()
    written = threading.Event()

    def write():
        chance = random.Random(0)
        with open(path, "ab", buffering=0) as file:
            at = 0
            while at < len(data):
                size = chance.randint(1, 400)
                file.write(data[at : at + size])
                at += size
        written.set()

    thread = threading.Thread(target=write)
    thread.start()
    followed = [event["step"] for event in follow_events(path, 0.001, written.is_set)]
    thread.join()
    assert followed == list(range(200)) == [event["step"] for event in read_events(path)]


def test_the_command_follows_a_run_to_its_end(tmp_path):
    with Run(tmp_path) as run:
        run.event("step", step=1, loss=0.5)
    command = [sys.executable, "-m", "sdxl_lora.run.events"]
    result = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0 and "step step=1 loss=0.5" in result.stdout
    result = subprocess.run([*command, str(tmp_path / "no")], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2 and "usage" in result.stderr

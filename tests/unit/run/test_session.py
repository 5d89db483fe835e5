"""A run's directory: one run at a time, status, stop, events."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from sdxl_lora.errors import CheckpointError, ConfigError, DataError, NonFiniteError, Stopped
from sdxl_lora.run.events import EventLog, follow_events, read_events
from sdxl_lora.run.lock import RunLock
from sdxl_lora.run.requests import StopRequest
from sdxl_lora.run.session import Run, read_status
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
    with pytest.raises(ConfigError, match="cannot write to"):
        Run(tmp_path / ("a" * 300))


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


@pytest.mark.parametrize("end", [b'{"event": "st', b"\0" * 50, '{"text": "日'.encode()[:-1], b"\n"])
def test_half_a_line_at_the_end_costs_no_other_event(tmp_path, end):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "first"}\n' + end)
    for name in ("second", "third"):
        log = EventLog(path)
        log.write(name, text="\udcff of a file's name")
        log.file.close()
    assert [event["event"] for event in read_events(path)] == ["first", "second", "third"]
    assert path.read_bytes().startswith(b'{"event": "first"}\n' + end)


def test_an_event_for_which_there_is_no_room_leaves_nothing_and_the_next_is_whole(tmp_path):
    """A limit on the file's size, as a quota gives it."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from sdxl_lora.run.events import EventLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); log = EventLog(Path(sys.argv[1])); log.write('first')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 4000))\n"
        "try:\n    log.write('second', text='x' * 2000)\nexcept OSError:\n    pass\nelse:\n    sys.exit('no error')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); log.write('third')"
    )
    path = tmp_path / "events.jsonl"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, timeout=120)
    assert [event["event"] for event in read_events(path)] == ["first", "third"]
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("end", [None, NonFiniteError("loss nan")])
def test_a_refused_command_leaves_a_run_as_it_was_and_any_other_end_is_recorded(tmp_path, end):
    with contextlib.suppress(NonFiniteError), Run(tmp_path) as run:
        run.event("started", step=0)
        run.update(state="training", step=3)
        if end:
            raise end
    for name in ("stop", "save_now", "sample_now"):
        (tmp_path / name).touch()  # asked for too late
    names = {path.name for path in tmp_path.iterdir()}
    before = {name: (tmp_path / name).read_bytes() for name in names}
    since = (tmp_path / "status.json").stat().st_mtime_ns
    for refusal in (ConfigError("no"), DataError("no"), CheckpointError("no")):
        with pytest.raises(type(refusal)), Run(tmp_path) as run:
            run.event("cached", pictures=3)
            run.update(state="caching")
            (tmp_path / "status-rank-1.json").write_text("{}")  # of another process
            assert not (tmp_path / "stop").exists()
            raise refusal
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert (tmp_path / "status.json").stat().st_mtime_ns == since
    with Run(tmp_path) as run:
        run.event("message", text="nothing to do")
        assert run.was_done is (end is None)
        raise Stopped("finished before, or Ctrl-C while loading")
    assert read_status(tmp_path)["state"] == ("stopped" if end else "done")
    with pytest.raises(DataError), Run(tmp_path) as run:
        run.event("cached", pictures=3)
        run.event("started", step=0)
        raise DataError("a picture was removed meanwhile")
    assert read_status(tmp_path)["state"] == "failed"
    events = [event["event"] for event in read_events(tmp_path / "events.jsonl")]
    assert events[-3:] == ["cached", "started", "failed"] and events.count("cached") == 1


def test_a_refused_command_puts_back_what_was_there_once_it_held_the_folder(tmp_path, monkeypatch):
    """It may have waited for a run on another machine, which ended meanwhile."""
    first = Run(tmp_path)

    def wait_for_the_first(folder):
        with first as run:
            run.event("started", step=0)
        return RunLock(folder)

    monkeypatch.setattr("sdxl_lora.run.session.RunLock", wait_for_the_first)
    with pytest.raises(ConfigError), Run(tmp_path):
        raise ConfigError("no")
    assert read_status(tmp_path)["state"] == "done"
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == ["started"]


def test_a_refused_command_leaves_no_folder_where_there_was_none(tmp_path):
    with pytest.raises(ConfigError), Run(tmp_path / "runs" / "cat") as run:
        run.update(state="caching")
        raise ConfigError("no")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError), Run(tmp_path) as run:
        raise ConfigError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_could_not_be_opened_is_let_go(tmp_path):
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(OSError, match="directory"):
        Run(tmp_path)
    (tmp_path / "events.jsonl").rmdir()
    with Run(tmp_path):
        pass


@pytest.mark.parametrize("damaged", ["", "{", "[]", "3", '"done"', "null"])
def test_a_damaged_status_file_is_as_none(tmp_path, damaged):
    (tmp_path / "status.json").write_text(damaged, encoding="utf-8")
    assert read_status(tmp_path) == {}
    with Run(tmp_path):
        assert read_status(tmp_path)["state"] == "starting"


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
    result = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "step step=1 loss=0.5" in result.stdout
    result = subprocess.run([*command, str(tmp_path / "no")], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "usage" in result.stderr

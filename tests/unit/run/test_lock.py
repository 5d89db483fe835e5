"""One run at a time in a folder: on one machine by the system's lock, between machines by signs of life."""

import errno
import multiprocessing
import os
import socket
import threading

import pytest

from sdxl_lora.errors import ConfigError
from sdxl_lora.run import lock
from sdxl_lora.run.lock import RunLock
from tests.helpers.waiting import until


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 1)


@pytest.fixture
def beats(monkeypatch):
    """Who looks for a sign of life sees the next one, however late a busy machine lets it come."""
    age = RunLock._age

    def age_after_a_beat(self):
        before = self.sign.stat().st_mtime_ns
        until(lambda: self.sign.stat().st_mtime_ns != before)
        return age(self)

    monkeypatch.setattr(RunLock, "_age", age_after_a_beat)


@pytest.fixture
def no_locks(monkeypatch):
    """A file system whose locks do not reach other machines, or that has none."""

    def acquire(self, timeout):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock.FileLock, "acquire", acquire)


def on_machine(monkeypatch, name):
    monkeypatch.setattr(socket, "gethostname", lambda: name)


def test_a_second_holder_is_refused_and_comes_in_after_the_first(tmp_path):
    first = RunLock(tmp_path)
    with pytest.raises(ConfigError, match=rf"another run \(pid {os.getpid()} on {socket.gethostname()}\)"):
        RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()
    assert not (tmp_path / ".holder").exists()


def hold_and_die(folder):
    RunLock(folder)
    os._exit(9)


def test_a_holder_that_died_on_this_machine_is_followed_at_once(tmp_path, monkeypatch):
    process = multiprocessing.get_context("fork").Process(target=hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert (tmp_path / ".holder").exists(), "it could not clean up"
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
    RunLock(tmp_path).release()


def test_another_machine_is_refused_while_the_holder_lives(tmp_path, monkeypatch, quick, beats, no_locks):
    first = RunLock(tmp_path)
    own = socket.gethostname()
    on_machine(monkeypatch, "elsewhere")
    with pytest.raises(ConfigError, match=rf"another run \(pid {os.getpid()} on {own}\) is at work"):
        RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()


def test_another_machine_takes_over_from_one_that_went_down(tmp_path, monkeypatch, quick, no_locks):
    first = RunLock(tmp_path)
    first._ended.set()  # it goes down without a word
    on_machine(monkeypatch, "elsewhere")
    second = RunLock(tmp_path)
    assert second._holder()["host"] == "elsewhere"
    second.release()


def test_of_several_machines_that_start_at_once_one_gets_it(tmp_path, monkeypatch, quick, beats, no_locks):
    names = threading.local()
    monkeypatch.setattr(socket, "gethostname", lambda: names.own)
    held, refused = [], []

    def start(name):
        names.own = name
        try:
            held.append(RunLock(tmp_path))
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(f"machine {number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 5
    assert all(f"on {held[0]._holder()['host']}" in words for words in refused)
    held[0].release()


def test_a_folder_that_cannot_be_locked_for_other_reasons_is_an_error(tmp_path, monkeypatch):
    def acquire(self, timeout):
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(lock.FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="read-only"):
        RunLock(tmp_path)

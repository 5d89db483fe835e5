"""Trainings that were started from a shell: the page's queue waits for them as for its own."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from filelock import Timeout

from tests.helpers.jobs import add, over, queue_of
from tests.helpers.waiting import until
from webui.runs.jobs import Jobs
from webui.runs.others import runs_of_others


@pytest.fixture
def queue(tmp_path):
    with queue_of(tmp_path) as jobs:
        yield jobs


def has_worker(jobs: Jobs) -> bool:
    """Whether someone tends the queue."""
    try:
        jobs.worker_lock.acquire(timeout=0)
        jobs.worker_lock.release()
    except Timeout:
        return True
    return False


@pytest.fixture
def other(tmp_path):
    """A process that stands for a training, and its run's folder."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = tmp_path / "cat" / "runs" / "shell"
    run.mkdir(parents=True)
    status = {"state": "training", "pid": process.pid, "heartbeat": time.time() + 1}
    (run / "status.json").write_text(json.dumps(status))
    yield process, run
    process.kill()
    process.wait()


def test_what_the_page_is_asked_for_waits_until_a_training_from_a_shell_is_over(queue, other):
    process, run = other
    assert runs_of_others(queue) == [run]
    job = add(queue, "print('now')")
    until(lambda: has_worker(queue))
    assert queue.read(job.id).state == "waiting"
    process.communicate(b"\n")
    assert until(lambda: over(queue, job)).exit_code == 0
    assert runs_of_others(queue) == []


def test_a_number_that_another_process_has_by_now_keeps_nothing_waiting(queue, tmp_path):
    run = tmp_path / "cat" / "runs" / "old"
    run.mkdir(parents=True)
    before_us = psutil.Process().create_time() - 60
    for status in (
        {"state": "training", "pid": os.getpid(), "heartbeat": before_us},
        {"state": "training", "pid": 2**22 - 3, "heartbeat": time.time()},
        {"state": "training", "pid": os.getpid(), "heartbeat": time.time(), "host": "another-machine"},
        {"state": "done", "pid": os.getpid(), "heartbeat": time.time()},
        {"state": "training", "pid": "x", "heartbeat": None}, [], {},
    ):  # fmt: skip
        (run / "status.json").write_text(json.dumps(status))
        assert runs_of_others(queue) == [], status

"""Several machines: two network namespaces with a cable between them, each with a host name of its own."""

import re
import time

import pytest

from sdxl_lora.checkpoint import checkpoints, problem_with
from sdxl_lora.events import read_events

from .forked import Launched
from .machines import two_machines, why_not


@pytest.fixture
def machines():
    if reason := why_not():
        pytest.skip(reason)
    with two_machines() as both:
        yield both


def wait_for(is_so, seconds=90, what="the run does not get to its steps"):
    until = time.time() + seconds
    while not is_so():
        assert time.time() < until, what
        time.sleep(0.05)


def steps_of(folder):
    log = folder / "events.jsonl"
    return [event["step"] for event in read_events(log, "step")] if log.exists() else []


TIMEOUT = 6


def test_a_machine_that_is_cut_off_is_named_in_time_and_the_run_goes_on_afterwards(train_config, tmp_path, machines):
    run = tmp_path / "run"
    settings = {"process_timeout_seconds": TIMEOUT, "checkpointing_steps": 2, "checkpoints_total_limit": 2}
    launched = Launched(train_config(**settings, max_train_steps=100_000), tmp_path / "log", machines=machines)
    wait_for(lambda: len(steps_of(run)) >= 3)
    machines[1].cut()
    since = time.time()
    assert launched.wait(60) == [8, 8], launched.printed()
    assert time.time() - since < TIMEOUT + 10
    words = launched.printed()
    for rank, other in ((0, 1), (1, 0)):
        line = rf"error: rank {other} does not answer \(last seen at step \d+ on {machines[other].name}\); "
        assert re.search(line + f"rank {rank} ends at step", words), words
    assert "The same command goes on from the newest checkpoint" in words and "Traceback" not in words

    machines[1].mend()
    saved = checkpoints(run)
    assert saved and all(problem_with(path) is None for path in saved)
    done = int(saved[-1].name.split("-")[1])
    launched = Launched(train_config(**settings, max_train_steps=done + 3), tmp_path / "log 2", machines=machines)
    assert launched.wait(60) == [0, 0], launched.printed()
    assert f"going on after step {done}" in launched.printed()
    assert steps_of(run)[-3:] == [done + 1, done + 2, done + 3]

"""The app that the page is a tab of: told before each job, and after it; with a real worker."""

import dataclasses
import time

import pytest

from sdxl_lora.errors import ConfigError
from tests.helpers.jobs import add, over, queue_of
from tests.helpers.waiting import until
from webui.runs.hosts import Host, answers_of_hosts, folder_of_hosts, living_hosts
from webui.runs.jobs import Jobs
from webui.runs.launch import new_job
from webui.runs.listing import RunState, state_of
from webui.runs.worker import KEPT_JOBS, prune


@pytest.fixture
def queue(tmp_path):
    with queue_of(tmp_path) as jobs:
        yield jobs


class App:
    """One with a model of its own; `heard` is what it was told, `runs` what of ours was running then."""

    def __init__(self, jobs: Jobs):
        self.jobs, self.heard, self.reason = jobs, [], ""
        self.host = Host(jobs, self.before, self.after)

    def before(self) -> None:
        self.heard.append(("before", len(self.running())))
        if self.reason:
            raise ConfigError(self.reason)

    def after(self) -> None:
        self.heard.append(("after", len(self.running())))

    def running(self) -> list:
        return [job for job in self.jobs.all() if job.state == "running"]


def test_the_app_hears_of_each_job_as_it_starts_and_when_it_is_over(queue, tmp_path):
    app = App(queue)
    app.host.listen()
    first = add(queue, f"import pathlib, time\nwhile not pathlib.Path(r'{tmp_path / 'go'}').exists(): time.sleep(.05)")
    second = add(queue, "raise SystemExit(1)")
    until(lambda: queue.read(first.id).state == "running")
    assert app.heard == [("before", 0)], "the second one has only been asked for"
    (tmp_path / "go").touch()
    assert until(lambda: over(queue, second)).exit_code == 1
    until(lambda: len(app.heard) == 4)
    assert sorted(app.heard) == [("after", 0)] * 2 + [("before", 0)] * 2
    app.host.lock.release()


def test_a_job_that_the_app_makes_no_room_for_fails_with_its_reason_and_the_next_one_runs(queue, tmp_path):
    app = App(queue)
    app.reason = "still drawing"
    app.host.listen()
    run = tmp_path / "cat" / "runs" / "one"
    job = add(queue, "print('never')", kind="train", target=run)
    assert until(lambda: over(queue, job)).exit_code == ConfigError.exit_code
    assert state_of(run, queue) == RunState("failed", 0, "error: still drawing")
    app.reason = ""
    job = add(queue, "print('now')")
    assert until(lambda: over(queue, job)).exit_code == 0
    until(lambda: [word for word, _ in app.heard] == ["before", "before", "after"])
    app.host.lock.release()


def test_an_app_that_has_died_keeps_nothing_waiting(queue):
    (folder_of_hosts(queue)).mkdir()
    (folder_of_hosts(queue) / "4194301.lock").touch()
    assert living_hosts(queue) == [] and answers_of_hosts(queue, "any") == []
    assert list(folder_of_hosts(queue).iterdir()) == []


def test_jobs_that_are_over_are_deleted_but_for_those_that_still_tell_something(queue, tmp_path):
    def done(kind: str, target: str, after=None, **facts):
        job = dataclasses.replace(new_job(kind, target, after=after), state="ended", exit_code=0, **facts)
        queue.write(dataclasses.replace(job, created=time.time()))
        return queue.read(job.id)

    forerunner = done("prepare", "data")
    trained = done("train", "run", forerunner)
    old, drawn, *_ = [done("draw", "run") for _ in range(2)]
    captions = [done("caption", "data") for _ in range(KEPT_JOBS + 3)]
    done("prepare", "data")
    prune(queue)
    left = {job.id for job in queue.all()}
    assert {forerunner.id, trained.id, drawn.id} < left and old.id not in left
    assert [job.id in left for job in captions] == [False] * 4 + [True] * (KEPT_JOBS - 1)

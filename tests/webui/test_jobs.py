"""The page's queue with real processes: order, stop, end, and that no kill of page or worker costs a job."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from sdxl_lora.config.fields import replace_flat
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import EventLog
from sdxl_lora.run.status import replace_text
from tests.helpers.configs import flat_preprocess_config, flat_train_config
from tests.helpers.jobs import add, over, queue_of
from tests.helpers.paths import ROOT
from tests.helpers.waiting import until
from webui.runs import jobs as jobs_module
from webui.runs.jobs import Job, Jobs
from webui.runs.launch import caption_job, prepare_job, train_job
from webui.runs.listing import RunState, console_lines, find_runs, state_of
from webui.runs.worker import work

WAITS = "import time, sys; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def jobs(tmp_path):
    with queue_of(tmp_path) as queue:
        yield queue


def running(jobs: Jobs, job: Job) -> Job | None:
    """The job once it has printed that it is up."""
    now = jobs.read(job.id)
    return now if now.state == "running" and "up" in console_lines(jobs, now) else None


def waits_for(path: Path) -> str:
    """A job that is up until the file is there."""
    return f"import pathlib, time; print('up', flush=True)\nwhile not pathlib.Path(r'{path}').exists(): time.sleep(.05)"


def test_jobs_run_one_after_another_in_their_order_and_leave_no_one_behind(jobs, tmp_path):
    alone = tmp_path / "alone"  # a second one beside it would find it there, and fail
    code = "import os; open(r'{0}', 'x'); open(r'{1}', 'a').write('{2} {2}-end '); os.unlink(r'{0}')"
    added = [add(jobs, code.format(alone, tmp_path / "log", name)) for name in "abc"]
    for job in added:
        assert until(lambda job=job: over(jobs, job)).exit_code == 0
    assert (tmp_path / "log").read_text().split() == ["a", "a-end", "b", "b-end", "c", "c-end"]
    until(lambda: no_worker(tmp_path))


def no_worker(projects: Path) -> bool:
    workers = [p for p in psutil.process_iter(["cmdline"]) if "webui.runs.worker" in (p.info["cmdline"] or [])]
    return not any(str(projects) in p.info["cmdline"] and p.status() != psutil.STATUS_ZOMBIE for p in workers)


def test_what_waits_is_moved_and_cancelled(jobs, monkeypatch):
    monkeypatch.setattr(Jobs, "ensure_worker", lambda self: None)
    a, b, c = (add(jobs, f"{WAITS}  # {name}") for name in "abc")
    jobs.move(c.id, -1)
    jobs.move(a.id, -1)
    assert [job.id for job in jobs.waiting()] == [a.id, c.id, b.id]
    jobs.move(a.id, 5)
    assert jobs.cancel(c.id) and not jobs.cancel(c.id) and not jobs.cancel("none")
    assert [job.id for job in jobs.waiting()] == [b.id, a.id]
    assert jobs.read(c.id).state == "cancelled" and jobs.stop(b) == "cancelled"


def test_start_pressed_twice_is_one_run(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(Jobs, "ensure_worker", lambda self: None)
    config = flat_train_config(output_dir=str(tmp_path / "cat" / "runs" / "one"), train_data_dir="d")
    first = jobs.add(train_job(jobs, config))
    threads = [threading.Thread(target=lambda: jobs.add(train_job(Jobs(tmp_path), config))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [job.id for job in jobs.waiting()] == [first.id]
    assert find_runs(tmp_path, jobs) == [Path(config.output_dir)]
    with pytest.raises(ConfigError, match="with other settings"):
        jobs.add(train_job(jobs, replace_flat(config, rank=3)))
    images = [caption_job(tmp_path / "data", name) for name in ("a.png", "b.png", "a.png")]
    assert len({jobs.add(job).id for job in images}) == 2
    assert state_of(Path(config.output_dir), jobs) == RunState("waiting")


def test_a_job_behind_one_that_failed_is_cancelled(jobs):
    bad = add(jobs, "print('error: no pictures'); raise SystemExit(3)")
    behind = add(jobs, "print('never')", after=bad)
    assert until(lambda: over(jobs, bad)).exit_code == 3
    assert until(lambda: over(jobs, behind)).state == "cancelled"
    assert console_lines(jobs, behind) == []


def test_stop_ends_a_preparation_and_pressing_again_changes_nothing(jobs, tmp_path):
    job = add(jobs, WAITS, kind="prepare")
    now = until(lambda: running(jobs, job))
    assert {jobs.stop(now) for _ in range(5)} == {"stopping"}
    assert until(lambda: over(jobs, job)).exit_code == -signal.SIGTERM
    assert jobs.stop(jobs.read(job.id)) in ("stopping", "ending") and jobs.read(job.id).state == "ended"


def test_a_second_press_ends_what_does_not_stop_and_all_that_it_started(jobs, tmp_path, monkeypatch):
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); exec({STUBBORN!r})"
    job = add(jobs, child, kind="train", target=tmp_path)
    now = until(lambda: running(jobs, job))
    group = [p for p in psutil.process_iter() if os.getpgid(p.pid) == now.pid]
    assert len(group) == 2
    assert jobs.stop(now) == "stopping"
    until(lambda: (tmp_path / "stop").exists())
    monkeypatch.setattr(jobs_module, "SECONDS_BETWEEN_PRESSES", 0.0)
    assert jobs.stop(now) == "ending"
    assert until(lambda: over(jobs, job)).exit_code == -signal.SIGKILL
    assert until(lambda: not [p for p in group if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


def test_stop_reaches_a_run_that_is_just_starting_and_removes_the_old_stop_file(jobs, tmp_path):
    """As run.py does when it takes its folder."""
    run = tmp_path / "run"
    code = (
        f"{waits_for(tmp_path / 'asked')}\n"
        f"run = pathlib.Path(r'{run}'); run.mkdir(exist_ok=True); (run / 'stop').unlink(missing_ok=True)\n"
        "while not (run / 'stop').exists(): time.sleep(.05)"
    )
    job = add(jobs, code, kind="train", target=run)
    now = until(lambda: jobs.read(job.id) if jobs.read(job.id).state == "running" else None)
    jobs.stop(now)
    (tmp_path / "asked").touch()
    assert until(lambda: over(jobs, job)).exit_code == 0


def test_a_killed_worker_costs_neither_the_job_nor_those_behind_it(jobs, tmp_path):
    job = add(jobs, waits_for(tmp_path / "go"))
    behind = add(jobs, "print('up')")
    now = until(lambda: running(jobs, job))
    worker = psutil.Process(now.pid).parent()
    worker.kill()
    worker.wait(5)
    assert now.process() is not None
    Jobs(tmp_path).ensure_worker()  # as the page does every second, and a new page when it opens
    Jobs(tmp_path).ensure_worker()
    (tmp_path / "go").touch()
    ended, after = until(lambda: over(jobs, job)), until(lambda: over(jobs, behind))
    assert ended.pid == now.pid and console_lines(jobs, ended) == ["up"], "it was not started anew"
    assert after.exit_code == 0 and after.started >= ended.ended


def test_a_job_outlives_the_process_that_asked_for_it(jobs, tmp_path):
    code = (
        "import dataclasses, sys, pathlib; from webui.runs.jobs import Jobs; from webui.runs.launch import new_job\n"
        "jobs = Jobs(pathlib.Path(sys.argv[1])); job = new_job('draw', 'x')\n"
        "jobs.add(dataclasses.replace(job, command=[sys.executable, '-c', sys.argv[2]])); print(job.id, flush=True)\n"
        "import time; time.sleep(60)"
    )
    page = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), waits_for(tmp_path / "go")],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    job_id = page.stdout.readline().strip()
    job = until(lambda: running(jobs, jobs.read(job_id)))
    os.killpg(page.pid, signal.SIGKILL)
    page.wait()
    page.stdout.close()
    (tmp_path / "go").touch()
    assert until(lambda: over(jobs, job)).exit_code == 0


def test_a_second_worker_leaves_at_once(jobs):
    job = add(jobs, WAITS)
    until(lambda: running(jobs, job))
    work(Jobs(jobs.folder.parent))
    assert jobs.read(job.id).process() is not None, "it has not waited for the job"


def test_no_argument_goes_through_a_shell_and_no_file_of_the_page_holds_a_token(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCanaryCanaryCanaryCanary07")
    name = "$(touch pwned); `id`"
    config = flat_preprocess_config(input_dir=name, output_dir=str(tmp_path / "data"), caption_model="none")
    job = jobs.add(prepare_job(jobs, config))
    assert isinstance(job.command, list) and name not in job.command
    ended = until(lambda: over(jobs, job), 60)
    assert ended.exit_code == 2 and not list(tmp_path.rglob("pwned")) and not (ROOT / "pwned").exists()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hf_canary" not in path.read_bytes(), path


def test_a_run_is_told_by_its_folder(jobs, tmp_path):
    """Whoever started it: its status file, and whether its process is there."""
    run = tmp_path / "cat" / "runs" / "one"
    run.mkdir(parents=True)
    EventLog(run / "events.jsonl").write("started", total_steps=9)
    gone = 2**22 - 3
    for state, pid, told in (
        ("training", os.getpid(), "training"),
        ("training", gone, "killed"),
        ("done", gone, "done"),
        ("failed", gone, "failed"),
    ):
        status = {"state": state, "step": 4, "pid": pid, "heartbeat": 1, "last_checkpoint": "checkpoint-3"}
        replace_text(run / "status.json", json.dumps(status))
        assert state_of(run, jobs) == RunState(told, 4, "", "checkpoint-3")
    (run / "status.json").write_text("{half")
    assert state_of(run, jobs) == RunState("new")
    assert find_runs(tmp_path, jobs) == [run]


def test_a_console_is_shown_without_colours_and_old_bars(jobs):
    job = add(jobs, r"print('\x1b[31mred\x1b[0m'); print('10%\r50%\r100%'); print(); print('end')")
    until(lambda: over(jobs, job))
    assert console_lines(jobs, job) == ["red", "100%", "end"]

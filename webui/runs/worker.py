"""Run the page's jobs one after another, outliving the page: python -m webui.runs.worker PROJECTS_DIR

Ends when there is nothing to do; jobs.py starts it again. It may be killed at any time: the job it tended goes on, and
the next worker takes it over.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from filelock import Timeout

from sdxl_lora.errors import ConfigError
from sdxl_lora.operating_system import end_all, start_apart
from sdxl_lora.run.status import read_status
from webui.runs.hosts import answers_of_hosts
from webui.runs.jobs import ROOT, Job, Jobs
from webui.runs.others import runs_of_others

SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_TO_END = 5.0
KEPT_JOBS = 50


def work(jobs: Jobs) -> None:
    """Run jobs until none waits or runs. Waiting jobs also wait for trainings started elsewhere.

    Returns at once if another worker runs.
    """
    try:
        jobs.worker_lock.acquire(timeout=0)
    except Timeout:
        return
    while True:
        with jobs.lock:
            job, child = jobs.running(), None
            following = next_job(jobs) if job is None else None
            if following is not None and not runs_of_others(jobs):
                job, child = start(jobs, following)
            if job is None and following is None:
                prune(jobs)
                jobs.worker_lock.release()  # under jobs.lock, so that whoever adds a job next finds no worker
                return
        if job is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        tend(jobs, job)
        exit_code = child.wait() if child else read_status(Path(job.target)).get("exit_code")
        with jobs.lock:
            jobs.write(dataclasses.replace(job, state="ended", ended=time.time(), exit_code=exit_code))


def next_job(jobs: Jobs) -> Job | None:
    """Return the first waiting job that may start. A job whose forerunner failed is cancelled."""
    for job in jobs.waiting():
        forerunner = jobs.read(job.after) if job.after else None
        if forerunner is None or (forerunner.is_over and forerunner.exit_code == 0):
            return job
        if forerunner.is_over:
            jobs.write(dataclasses.replace(job, state="cancelled", ended=time.time()))
    return None


def start(jobs: Jobs, job: Job) -> tuple[Job | None, subprocess.Popen | None]:
    """Return the started job and its process; (None, None) while an app frees the GPU, or refuses.

    A refusal ends the job as failed.
    """
    refusals = answers_of_hosts(jobs, job.id)
    if refusals is None:
        return None, None
    with open(jobs.folder_of(job.id) / "console.log", "ab") as log:
        if refusals:
            log.write(f"error: {refusals[0]}\n".encode())
            over = dataclasses.replace(job, state="ended", started=time.time(), ended=time.time())
            jobs.write(dataclasses.replace(over, exit_code=ConfigError.exit_code))
            return None, None
        child = start_apart(job.command, ROOT, log, os.environ)
    created = psutil.Process(child.pid).create_time()
    job = dataclasses.replace(job, state="running", pid=child.pid, pid_created=created, started=time.time())
    jobs.write(job)
    jobs.queue.write([other.id for other in jobs.waiting()])
    return job, child


def prune(jobs: Jobs) -> None:
    """Delete old jobs that are over.

    Kept are the last ones, the last of each kind for each folder (its drawings, or why it failed), and those that other
    jobs come after.
    """
    everything = jobs.all()
    forerunners = {job.after for job in everything}
    seen: set[tuple[str, str]] = set()
    for place, job in enumerate(reversed([job for job in everything if job.is_over])):
        if place >= KEPT_JOBS and (job.kind, job.target) in seen and job.id not in forerunners:
            shutil.rmtree(jobs.folder_of(job.id), ignore_errors=True)
        seen.add((job.kind, job.target))


def tend(jobs: Jobs, job: Job) -> None:
    """Wait until the job's process is gone, passing on requests to stop or end."""
    folder, asked_to_stop, ends_at = jobs.folder_of(job.id), False, None
    while (process := job.process()) is not None:
        if (folder / "stop").exists():
            if job.kind == "train":  # repeatedly: a starting run removes the file of an earlier one
                if Path(job.target).is_dir():
                    (Path(job.target) / "stop").touch()
            elif not asked_to_stop:
                end_all(process.pid)
            asked_to_stop = True
        if (folder / "end").exists():
            end_all(process.pid, at_once=ends_at is not None and time.time() >= ends_at)
            ends_at = ends_at or time.time() + SECONDS_TO_END
        time.sleep(SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    work(Jobs(Path(sys.argv[1])))

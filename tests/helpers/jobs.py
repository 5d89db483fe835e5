"""The page's queue in a test: jobs of one line of Python, and a queue that leaves no process behind."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from webui.runs.jobs import Job, Jobs
from webui.runs.launch import new_job


@contextmanager
def queue_of(folder: Path) -> Iterator[Jobs]:
    """Yield the queue of a folder; whatever still runs in it at the end is killed."""
    jobs = Jobs(folder)
    yield jobs
    for job in jobs.all():
        if process := job.process():
            process.kill()
    for process in psutil.process_iter(["cmdline"]):
        if "webui.runs.worker" in (process.info["cmdline"] or []) and str(folder) in process.info["cmdline"]:
            process.kill()


def add(jobs: Jobs, code: str, kind: str = "draw", target: Path | None = None, after: Job | None = None) -> Job:
    job = new_job(kind, str(target or jobs.folder), after=after)
    return jobs.add(dataclasses.replace(job, command=[sys.executable, "-c", code]))


def over(jobs: Jobs, job: Job) -> Job | None:
    now = jobs.read(job.id)
    return now if now.is_over else None

"""Notify the app that holds the page before a job starts and when it is over. No gradio.

The queue's worker is a process of its own that outlives the app, so the two communicate through files:

    <projects>/.page/hosts/<pid>.lock       held by an app for as long as it lives
    <projects>/.page/hosts/next             id of the job to start next
    <projects>/.page/jobs/<id>/<pid>.ready  written once the app has freed its memory; holds its reason if it refuses
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from sdxl_lora.run.status import replace_text
from webui.runs.jobs import Jobs

SECONDS_BETWEEN_LOOKS = 0.3


class Host:
    """An app that holds the page.

    Args:
        before: called when a job is about to start; an exception from it fails the job and is its reason.
        after: called when that job is over, however it ended.
    """

    def __init__(self, jobs: Jobs, before: Callable[[], None], after: Callable[[], None]):
        self.jobs, self.before, self.after = jobs, before, after
        self.told: list[str] = []  # jobs announced to the app and not over
        folder = folder_of_hosts(jobs)
        folder.mkdir(exist_ok=True)
        self.lock = FileLock(folder / f"{os.getpid()}.lock", thread_local=False)

    def listen(self) -> None:
        """Watch the jobs in a thread that ends with the app."""
        self.lock.acquire()
        threading.Thread(target=self._listen, name="sdxl-lora-host", daemon=True).start()

    def _listen(self) -> None:
        while True:
            self.look()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def look(self) -> None:
        """Call `before` and `after` if they are due."""
        for job_id in list(self.told):
            job = self.jobs.read(job_id)
            if job is None or job.is_over:
                self.told.remove(job_id)
                self.after()
        job_id = next_of(self.jobs)
        job = self.jobs.read(job_id) if job_id else None
        answer = self.jobs.folder_of(job_id) / f"{os.getpid()}.ready"
        if job is None or job.state != "waiting" or answer.exists():
            return
        refusal = ""
        try:
            self.before()
            self.told.append(job_id)
        except Exception as error:  # whatever it is, the app still holds its model
            refusal = str(error) or type(error).__name__
        replace_text(answer, refusal)


def folder_of_hosts(jobs: Jobs) -> Path:
    return jobs.folder / "hosts"


def next_of(jobs: Jobs) -> str:
    try:
        return (folder_of_hosts(jobs) / "next").read_text(encoding="utf-8")
    except OSError:
        return ""


def living_hosts(jobs: Jobs) -> list[str]:
    """Return the process ids, as text, of living apps; locks of dead ones are removed."""
    found = []
    for path in folder_of_hosts(jobs).glob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
            path.unlink(missing_ok=True)
        except Timeout:
            found.append(path.stem)
    return found


def answers_of_hosts(jobs: Jobs, job_id: str) -> list[str] | None:
    """Ask all apps to free the GPU for a job; return their refusals, or None while one has not answered."""
    hosts = living_hosts(jobs)
    if hosts and next_of(jobs) != job_id:
        replace_text(folder_of_hosts(jobs) / "next", job_id)
    answers = [jobs.folder_of(job_id) / f"{host}.ready" for host in hosts]
    if not all(answer.exists() for answer in answers):
        return None
    return [text for answer in answers if (text := answer.read_text(encoding="utf-8"))]

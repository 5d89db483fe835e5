"""The app that the page is a tab of: told when a job of the page is about to start, and when it is over. No gradio.

The queue's worker is a process of its own and outlives the app, so the two speak through files:

    <projects>/.page/hosts/<pid>.lock       held by an app for as long as it lives
    <projects>/.page/hosts/next             id of the job that would start now
    <projects>/.page/jobs/<id>/<pid>.ready  written once the app has freed its memory; holds its reason where it refuses
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
    """
    Args:
        before: called when a job is about to start; what it raises is why the job does not.
        after: called when that job is over, however it ended.
    """

    def __init__(self, jobs: Jobs, before: Callable[[], None], after: Callable[[], None]):
        self.jobs, self.before, self.after = jobs, before, after
        self.told: list[str] = []  # of these jobs the app has heard, and they are not over
        folder = folder_of_hosts(jobs)
        folder.mkdir(exist_ok=True)
        self.lock = FileLock(folder / f"{os.getpid()}.lock", thread_local=False)

    def listen(self) -> None:
        """Begin to, in a thread that ends with the app."""
        self.lock.acquire()
        threading.Thread(target=self._listen, name="sdxl-lora-host", daemon=True).start()

    def _listen(self) -> None:
        while True:
            self.look()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def look(self) -> None:
        """Call what has to be called by now."""
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
        except Exception as error:  # whatever it is, the job must not start beside what the app still holds
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
    """Process numbers, as text, of the apps that live; locks of others are removed."""
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
    """Ask all apps to make room for a job. Returns their reasons against it, none where all have made room; or None
    while one has not answered."""
    hosts = living_hosts(jobs)
    if hosts and next_of(jobs) != job_id:
        replace_text(folder_of_hosts(jobs) / "next", job_id)
    answers = [jobs.folder_of(job_id) / f"{host}.ready" for host in hosts]
    if not all(answer.exists() for answer in answers):
        return None
    return [text for answer in answers if (text := answer.read_text(encoding="utf-8"))]

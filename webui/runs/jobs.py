"""The page's queue of jobs, run one after another. Each is a folder, so that every page finds it.

    <projects>/.page/order.json        the waiting jobs, the next one first
    <projects>/.page/jobs/<id>/        job.json, config.yaml, console.log; `stop` and `end` once requested

worker.py starts them. Writers of job.json and order.json hold `Jobs.lock`. No gradio.
"""

import dataclasses
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from sdxl_lora.errors import ConfigError
from sdxl_lora.operating_system import start_apart
from sdxl_lora.run.status import replace_text
from webui.server.security import PASSWORD_VARIABLE

ROOT = Path(__file__).parents[2]  # where train_sdxl_lora.py and preprocess/ are
SECONDS_BETWEEN_PRESSES = 2.0  # a second press of Stop within this time is a double click


@dataclasses.dataclass(frozen=True)
class Job:
    """A job of the queue.

    Attributes:
        kind: prepare, caption, train, draw, select or tool.
        target: the dataset's or run's folder that it works on.
        command: argument list; never passed to a shell.
        after: id of a job that must succeed first.
        state: waiting, running, ended or cancelled.
        pid, pid_created: process id and its creation time, which tells it from a later process of the same id.
    """

    id: str
    kind: str
    target: str
    command: list[str]
    created: float
    after: str | None = None
    state: str = "waiting"
    pid: int | None = None
    pid_created: float | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("ended", "cancelled")

    def process(self) -> psutil.Process | None:
        """Return its process if that is still running."""
        try:
            process = psutil.Process(self.pid) if self.pid else None
            if process is None or abs(process.create_time() - (self.pid_created or 0)) >= 1:
                return None
            return process if process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:  # gone, or its id now belongs to another user's process
            return None


def job_of(facts: dict) -> Job:
    """Return the job that its file describes.

    Raises:
        TypeError: a person or another version of the page has written something else there.
    """
    kinds = {"id": str, "kind": str, "target": str, "state": str, "command": list, "created": int | float}
    may_be_none: dict[str, Any] = {"after": str, "pid": int, "exit_code": int}
    may_be_none |= dict.fromkeys(("pid_created", "started", "ended"), int | float)
    job = Job(**facts)
    for name, kind in (kinds | may_be_none).items():
        value = getattr(job, name)
        if not isinstance(value, kind) and (value is not None or name in kinds):
            raise TypeError(f"{name} is {value!r}")
    return job


def wish(job: Job, folder: Path) -> tuple[list[str], str]:
    """Return the command without the job's id, and the settings: equal for equal requests."""
    path = folder / "config.yaml"
    settings = path.read_text(encoding="utf-8") if path.exists() else ""
    return [word.replace(job.id, "") for word in job.command], settings


def new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


class Queue:
    """A file with the ids of the waiting jobs, the next one first."""

    def __init__(self, path: Path):
        self.path = path

    def ids(self) -> list[str]:
        try:
            order = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [job_id for job_id in order if isinstance(job_id, str)] if isinstance(order, list) else []

    def write(self, ids: list[str]) -> None:
        replace_text(self.path, json.dumps(ids))


class Jobs:
    """Jobs of one folder of projects."""

    def __init__(self, projects: Path):
        self.folder = projects / ".page"
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / "lock")
        self.worker_lock = FileLock(self.folder / "worker.lock")
        self.queue = Queue(self.folder / "order.json")
        self._read: dict[str, tuple[tuple[int, int], Job]] = {}

    def folder_of(self, job_id: str) -> Path:
        return self.folder / "jobs" / job_id

    def read(self, job_id: str) -> Job | None:
        """Return the job from its file; unchanged files are not read again, since pages ask every second.

        A job that is over never changes.
        """
        if (known := self._read.get(job_id)) and known[1].is_over:
            return known[1]
        path = self.folder_of(job_id) / "job.json"
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            if self._read.get(job_id, (None, None))[0] != stamp:
                self._read[job_id] = (stamp, job_of(json.loads(path.read_text(encoding="utf-8"))))
            return self._read[job_id][1]
        except (OSError, ValueError, TypeError):
            return None

    def write(self, job: Job) -> None:
        folder = self.folder_of(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "job.json", json.dumps(dataclasses.asdict(job), indent=1))
        self._read.pop(job.id, None)

    def all(self) -> list[Job]:
        """Return all jobs, the oldest first."""
        found = map(self.read, sorted(os.listdir(self.folder / "jobs")))
        return sorted((job for job in found if job), key=lambda job: job.created)

    def of(self, target: Path) -> list[Job]:
        return [job for job in self.all() if job.target == str(target)]

    def newest(self, *kinds: str, of: Path | None = None) -> Job | None:
        """Return the newest job of these kinds, optionally for one folder."""
        found = (job for job in reversed(self.all()) if job.kind in kinds)
        return next((job for job in found if of is None or job.target == str(of)), None)

    def waiting(self) -> list[Job]:
        """Return the waiting jobs, the next one first."""
        found = (self.read(job_id) for job_id in self.queue.ids())
        return [job for job in found if job and job.state == "waiting"]

    def running(self) -> Job | None:
        return next((job for job in reversed(self.all()) if job.state == "running"), None)

    def add(self, job: Job) -> Job:
        """Append a job to the queue; an equal job that waits or runs already is returned instead.

        Raises:
            ConfigError: a training or preparation of this folder with other settings is not over yet.
        """
        with self.lock:
            for other in self.of(Path(job.target)):
                if other.is_over or other.kind != job.kind:
                    continue
                if wish(other, self.folder_of(other.id)) == wish(job, self.folder_of(job.id)):
                    return other
                if job.kind in ("prepare", "train"):
                    name = Path(job.target).name
                    raise ConfigError(
                        f"{name} is already running or queued with other settings: stop it or choose another name"
                    )
            self.write(job)
            self.queue.write([*(waiting.id for waiting in self.waiting()), job.id])
        self.ensure_worker()
        return job

    def move(self, job_id: str, by: int) -> None:
        with self.lock:
            ids = [job.id for job in self.waiting()]
            if job_id in ids:
                place = ids.index(job_id)
                ids.insert(max(0, place + by), ids.pop(place))
                self.queue.write(ids)

    def cancel(self, job_id: str) -> bool:
        """Cancel a waiting job; return whether it was still waiting."""
        with self.lock:
            job = self.read(job_id)
            if job is None or job.state != "waiting":
                return False
            self.write(dataclasses.replace(job, state="cancelled", ended=time.time()))
            self.queue.write([other.id for other in self.waiting()])
            return True

    def stop(self, job: Job) -> str:
        """Ask the job to finish its step and save, or to end if that was asked before; return its new state.

        Further presses change nothing.
        """
        if self.cancel(job.id):
            return "cancelled"
        folder = self.folder_of(job.id)
        asked = folder / "stop"
        if asked.exists() and time.time() - asked.stat().st_mtime > SECONDS_BETWEEN_PRESSES:
            (folder / "end").touch()
        elif not asked.exists():
            asked.touch()
        self.ensure_worker()
        return "ending" if (folder / "end").exists() else "stopping"

    def is_stopping(self, job: Job) -> bool:
        return (self.folder_of(job.id) / "stop").exists()

    def ensure_worker(self) -> None:
        """Start a worker if there is work and none runs: a process of its own, which outlives the page."""
        with self.lock:
            if not (self.waiting() or self.running()):
                return
            try:
                self.worker_lock.acquire(timeout=0)
                self.worker_lock.release()
            except Timeout:
                return
            others = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
            with open(self.folder / "worker.log", "ab") as log:
                command = [sys.executable, "-m", "webui.runs.worker", str(self.folder.parent)]
                start_apart(command, ROOT, log, {**others, "PYTHONUNBUFFERED": "1"})

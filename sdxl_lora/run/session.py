"""A run's directory: whoever wants to know of a run reads it there, whoever wants it to stop puts a file there.

    config.yaml  events.jsonl  status.json  stop  checkpoint-<step>/  samples/  the LoRA files

The web page, a shell and a cluster job all speak to a run through this directory alone. status.json holds state
(starting, caching, training, sampling, done, stopped, failed), step, reason, exit_code, last_checkpoint,
best_checkpoint, host, pid and heartbeat; status-rank-<n>.json the same of the other processes.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

from sdxl_lora.distributed.collectives import main_process_first
from sdxl_lora.errors import ConfigError, Stopped
from sdxl_lora.run.events import EventLog
from sdxl_lora.run.lock import Hold
from sdxl_lora.run.status import read_status, replace_text, status_path

STATUS_SECONDS = 2  # status.json's heartbeat is never older than this and one step


class Run:
    """One process's view of a run's directory; the main process (rank 0) holds it, and writes the events.

    As a context manager it records how the run ended; being stopped on request is no error.

    Raises:
        ConfigError: another run holds the directory (its pid is named), or it cannot be written.
    """

    def __init__(self, folder: Path, rank: int = 0):
        self.folder, self.rank = folder, rank
        self.status = {"state": "new", "step": 0, "reason": None, "exit_code": None, "last_checkpoint": None}
        self.status |= {"host": socket.gethostname(), "pid": os.getpid()}
        self.status["best_checkpoint"] = read_status(folder).get("best_checkpoint")
        self._written = 0.0
        if rank == 0:
            self._hold()
            self.events = EventLog(folder / "events.jsonl")
        self.update(state="starting")

    def _hold(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = Hold(self.folder)
        except OSError as error:
            raise ConfigError(f"cannot write to {self.folder}: {error.strerror or error}") from None
        for old in (self.folder / "stop", *self.folder.glob("status-rank-*.json")):  # of the run before
            old.unlink(missing_ok=True)

    def event(self, event: str, **facts) -> None:
        if self.rank == 0:
            self.events.write(event, **facts)

    def update(self, **facts) -> None:
        """Put facts into this process's status file: the step every STATUS_SECONDS, all else at once."""
        is_news = any(name != "step" and self.status[name] != fact for name, fact in facts.items())
        self.status |= facts
        if is_news or time.time() - self._written > STATUS_SECONDS:
            self._written = time.time()
            text = json.dumps({**self.status, "heartbeat": self._written})
            replace_text(status_path(self.folder, self.rank), text)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, _) -> bool:
        try:
            self._record_end(error)
        except OSError as failure:  # a full disk must not hide why the run ended
            print(f"cannot record the end of the run: {failure}", file=sys.stderr)
        finally:
            if self.rank == 0:
                self.events.file.close()
                self._held.release()
        return isinstance(error, Stopped)

    def _record_end(self, error: BaseException | None) -> None:
        if error is None:
            self.update(state="done", exit_code=0)
        elif isinstance(error, Stopped):
            self.event("stopped", reason=str(error), step=self.status["step"])
            self.update(state="stopped", reason=str(error), exit_code=0)
        else:
            exit_code = getattr(error, "exit_code", 1)
            self.update(state="failed", reason=str(error), exit_code=exit_code)
            self.event("failed", reason=str(error), kind=type(error).__name__, exit_code=exit_code)


def open_run(accelerator, folder: Path) -> Run:
    """The run's directory, held by the main process. Every process calls this; if it is taken, all raise."""
    return main_process_first(accelerator, lambda: Run(folder, accelerator.process_index))

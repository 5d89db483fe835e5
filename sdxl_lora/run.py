"""A run's directory: whoever wants to know of a run reads it there, whoever wants it to stop puts a file there.

    config.yaml  events.jsonl  status.json  stop  checkpoint-<step>/  samples/  the LoRA files

The web page, a shell and a cluster job all speak to a run through this directory alone. status.json holds state
(starting, caching, training, sampling, done, stopped, failed), step, reason, exit_code, last_checkpoint,
best_checkpoint, host, pid and heartbeat; status-rank-<n>.json the same of the other processes.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil

from sdxl_lora.errors import ConfigError, LostProcessError, Stopped
from sdxl_lora.events import EventLog
from sdxl_lora.hold import Hold
from sdxl_lora.processes import main_process_first
from sdxl_lora.status import is_alive, read_status, replace_text, status_path

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


def lost_ranks(folder: Path, world: int, own_rank: int) -> str:
    """Which other processes are gone, or else which has been silent for longest, and at which step, in words.

    Those of another machine can only be silent: their process numbers mean nothing here.
    """
    others = {rank: read_status(folder, rank) for rank in range(world) if rank != own_rank}
    here = {rank: status for rank, status in others.items() if status.get("host") == socket.gethostname()}
    for _ in range(10 if here else 0):  # a killed process closes its connections a moment before it is gone
        gone = [rank for rank, status in here.items() if not is_alive(status["pid"])]
        if gone:
            return ", ".join(f"rank {rank} is gone ({last_seen(others[rank])})" for rank in gone)
        time.sleep(0.2)
    silent = min(others, key=lambda rank: others[rank].get("heartbeat", 0))
    return f"rank {silent} does not answer ({last_seen(others[silent])})"


def last_seen(status: dict) -> str:
    return f"last seen at step {status.get('step', 0)} on {status.get('host', 'an unknown machine')}"


@contextlib.contextmanager
def naming_lost_processes(accelerator, run: Run):
    """Turn the error of a collective that another process did not take part in into words about that process."""
    try:
        yield
    except RuntimeError as error:
        signs = (
            "gloo",
            "NCCL",
            "Connection closed by peer",
            "Connection reset by peer",
            "Timed out waiting",
            "SocketImpl",
        )
        if accelerator.num_processes == 1 or not any(sign in str(error) for sign in signs):
            raise
        lost = lost_ranks(run.folder, accelerator.num_processes, accelerator.process_index)
        raise LostProcessError(
            f"{lost}; rank {accelerator.process_index} ends at step {run.status['step']}. "
            f"The same command goes on from the newest checkpoint. ({str(error).strip().splitlines()[0]})"
        ) from error


class StopRequest:
    """Why the run should stop: SIGTERM, SIGINT (a second one ends it at once), SIGUSR1 (a cluster's warning before the
    time is up), a file `stop`, or its launcher is gone.

    A context manager: outside it the signals do what they did before.
    """

    def __init__(self, folder: Path):
        self.file, self.signal_name = folder / "stop", None
        launcher = psutil.Process().parent()
        # accelerate's launcher for one process dies of SIGTERM at once and leaves its worker training.
        is_accelerate = launcher is not None and any("accelerate" in word for word in launcher.cmdline())
        self.launcher = launcher if is_accelerate else None

    def __enter__(self) -> "StopRequest":
        numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
        self._handlers = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.signal_name = signal.Signals(number).name
        if number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def reason(self) -> str | None:
        if self.signal_name is None and self.launcher is not None and not self.launcher.is_running():
            self.signal_name = "the launcher is gone"
        return self.signal_name or ("stop file" if self.file.exists() else None)

"""A run's directory: whoever wants to know of a run reads it there, whoever wants it to stop puts a file there.

    config.yaml  events.jsonl  status.json  stop  checkpoint-<step>/  samples/  the LoRA files

The web page, a shell and a cluster job all speak to a run through this directory alone.
"""

import json
import os
import signal
import time
from pathlib import Path

from filelock import FileLock, Timeout

from sdxl_lora.errors import ConfigError
from sdxl_lora.events import EventLog
from sdxl_lora.processes import main_process_decides

STATUS_SECONDS = 2  # status.json's heartbeat is never older than this and one step


class Run:
    """The main process's hold on a run's directory; on other processes (`is_main` false) it writes nothing.

    As a context manager it records how the run ended.

    Raises:
        ConfigError: another run holds the directory (its pid is named), or it cannot be written.
    """

    def __init__(self, folder: Path, is_main: bool = True):
        self.folder, self.is_main = folder, is_main
        self.status = {"state": "starting", "step": 0, "reason": None, "exit_code": None, "last_checkpoint": None}
        self.status["pid"] = os.getpid()
        self._written = 0.0
        if not is_main:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock")  # the system lets go of it however the process ends
            self._lock.acquire(timeout=0)
        except Timeout:
            pid = read_status(folder).get("pid", "unknown")
            raise ConfigError(f"another run (pid {pid}) is at work in {folder}: choose another --output_dir") from None
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror or error}") from None
        (folder / "stop").unlink(missing_ok=True)  # meant for the run before
        self.events = EventLog(folder / "events.jsonl")
        self.update(state="starting")

    def event(self, event: str, **facts) -> None:
        if self.is_main:
            self.events.write(event, **facts)

    def update(self, **facts) -> None:
        """Put facts into status.json: the step every STATUS_SECONDS, all else at once."""
        is_news = any(name != "step" and self.status[name] != fact for name, fact in facts.items())
        self.status |= facts
        if self.is_main and (is_news or time.time() - self._written > STATUS_SECONDS):
            self._written = time.time()
            replace_text(self.folder / "status.json", json.dumps({**self.status, "heartbeat": self._written}))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, _) -> None:
        if error is None:
            self.update(state=self.status["state"] if self.status["state"] == "stopped" else "done", exit_code=0)
        else:
            exit_code = getattr(error, "exit_code", 1)
            self.event("failed", reason=str(error), kind=kind.__name__, exit_code=exit_code)
            self.update(state="failed", reason=str(error), exit_code=exit_code)
        if self.is_main:
            self._lock.release()


def open_run(accelerator, folder: Path) -> Run:
    """The run's directory, held by the main process. Every process calls this; if it is taken, all raise."""
    opened = []
    main_process_decides(accelerator, lambda: opened.append(Run(folder)))
    return opened[0] if opened else Run(folder, is_main=False)


def read_status(folder: Path) -> dict:
    """What status.json says; {} where there is none."""
    try:
        return json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class StopRequest:
    """Why the run should stop after this step: SIGTERM, SIGINT (a second one ends it at once), or a file `stop`.

    A context manager: outside it the signals do what they did before.
    """

    def __init__(self, folder: Path):
        self.file, self.signal_name = folder / "stop", None

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.signal_name = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    def reason(self) -> str | None:
        return self.signal_name or ("stop file" if self.file.exists() else None)

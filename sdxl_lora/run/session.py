"""A run's directory, through which others read its status and make requests.

    config.yaml  events.jsonl  status.json  stop  save_now  sample_now  checkpoint-<step>/  samples/  the LoRA files

The web page, a shell and a cluster job all use a run through this directory alone. status.json holds state (starting,
caching, training, sampling, done, stopped, failed), step, reason, exit_code, last_checkpoint, best_checkpoint, host,
pid and heartbeat; status-rank-<n>.json holds the same of the other processes.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.distributed.collectives import main_process_first, raise_on_all_ranks
from sdxl_lora.errors import CheckpointError, ConfigError, DataError, Stopped
from sdxl_lora.io.file_system import remove
from sdxl_lora.performance.device_memory import out_of_memory_advice
from sdxl_lora.performance.memory_budget import smaller_settings
from sdxl_lora.run.checkpoints import newest_checkpoint
from sdxl_lora.run.disk_errors import disk_errors, is_disk_error
from sdxl_lora.run.events import EventLog
from sdxl_lora.run.former_state import FormerState
from sdxl_lora.run.lock import RunLock
from sdxl_lora.run.lost_processes import explain_lost_ranks
from sdxl_lora.run.requests import EVERYTHING, NOTHING, Asked, StopRequest, asked_of, forget
from sdxl_lora.run.status import read_status, replace_text, status_path

STATUS_SECONDS = 2  # status.json's heartbeat is never older than this and one step
REFUSALS = (ConfigError, DataError, CheckpointError)


class Run:
    """One process's view of a run's directory; the main process (rank 0) locks it and writes the events.

    As a context manager it records the end of the run; a stop on request is no error. A command that is refused before
    its first step leaves the folder as it was, or no folder if there was none. The same holds, if the former run was
    done, for a command that finds nothing to do or is stopped.

    Attributes:
        was_done: the former run was done, and this one has not begun.

    Raises:
        ConfigError: another run holds the directory (its pid is named), or it cannot be written.
        DiskError: the disk is full.
    """

    def __init__(self, folder: Path, rank: int = 0):
        self.folder, self.rank, self._written = folder, rank, 0.0
        self.status: dict = {"state": "new", "step": 0, "reason": None, "exit_code": None, "last_checkpoint": None}
        self.status |= {"host": socket.gethostname(), "pid": os.getpid()}
        self.stop: StopRequest | None = None
        self.is_alone = True  # no other process takes part
        self._has_begun = False  # its first step; until then the command may be refused, and its events wait
        self._waiting: list[tuple[str, dict]] = []
        with contextlib.ExitStack() as undo, disk_errors(folder):
            if rank == 0:
                self._hold()
                undo.callback(self._let_go, leaves_no_trace=True)
                self.events = EventLog(folder / "events.jsonl")
            before = read_status(folder)
            self.was_done = before.get("state") == "done"
            self.status["best_checkpoint"] = before.get("best_checkpoint")
            if newest := newest_checkpoint(folder):
                self.status |= {"last_checkpoint": newest.name, "step": int(newest.name.split("-")[1])}
            self.update(state="starting")
            undo.pop_all()

    def _hold(self) -> None:
        try:
            self._former = FormerState(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = RunLock(self.folder)
            self._former.remember()
        except OSError as error:
            if is_disk_error(error):
                raise
            raise ConfigError(f"cannot write to {self.folder}: {error.strerror or error}") from None
        for old in (self.folder / "stop", *self.folder.glob("status-rank-*.json")):  # of the run before
            remove(old)
        forget(self.folder, EVERYTHING)

    def event(self, event: str, **facts) -> None:
        if event == "started":
            self._has_begun, self.was_done = True, False
        if self.rank > 0:
            return
        self._waiting.append((event, {"time": round(time.time(), 3), **facts}))
        if self._has_begun:
            self._write_events()

    def _write_events(self) -> None:
        while self._waiting:
            event, facts = self._waiting[0]
            self.events.write(event, **facts)
            self._waiting.pop(0)

    def update(self, **facts) -> None:
        """Write facts to this process's status file: the step every STATUS_SECONDS, all else at once."""
        is_news = any(name != "step" and self.status[name] != fact for name, fact in facts.items())
        self.status |= facts
        if is_news or time.time() - self._written > STATUS_SECONDS:
            self._written = time.time()
            text = json.dumps({**self.status, "heartbeat": self._written})
            replace_text(status_path(self.folder, self.rank), text)

    def stop_requested(self) -> str | None:
        """Return the reason why this process should stop; None if it should not."""
        return self.stop.reason() if self.stop else None

    def stop_agreed(self, accelerator) -> bool:
        """Return whether any process should stop, the same on every process. All processes call this."""
        if self.stop_requested():
            accelerator.set_trigger()
        return accelerator.check_trigger()

    def asked(self) -> Asked:
        """Return the requests other than a stop; only the main process looks for them."""
        return asked_of(self.folder) if self.rank == 0 else NOTHING

    def take_asked(self, agreed: Asked) -> Asked:
        """Return the requests to obey now, the same on every process, and mark them as done.

        Args:
            agreed: the requests known to all processes.
        """
        asked = self.asked() if self.is_alone else agreed
        if self.rank == 0:
            forget(self.folder, asked)
        return asked

    def end_if_asked(self, accelerator, where: str) -> None:
        """Raise Stopped if any process should stop. All processes call this."""
        if self.stop_agreed(accelerator):
            self.end(where)

    def end(self, where: str) -> NoReturn:
        """Print a line about the stop and raise Stopped."""
        words = f"stopped {where} ({self.stop_requested() or 'another process was asked to'})"
        if self.rank == 0:
            print(f"{words}; the same command goes on from there", file=sys.stderr)
        raise Stopped(words)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, _) -> bool:
        may_leave_no_trace = (*REFUSALS, Stopped) if self.was_done else REFUSALS
        leaves_no_trace = not self._has_begun and isinstance(error, may_leave_no_trace)
        try:
            if not leaves_no_trace:
                self._record_end(error)
        except OSError as failure:  # a full disk must not hide why the run ended
            print(f"cannot record the end of the run: {failure}", file=sys.stderr)
        finally:
            if self.rank == 0:
                self.events.file.close()
                self._let_go(leaves_no_trace)
        return isinstance(error, Stopped)

    def _let_go(self, leaves_no_trace: bool) -> None:
        if leaves_no_trace:
            self._former.put_back()
        self._held.release()
        if leaves_no_trace:
            self._former.remove_folder()

    def _record_end(self, error: BaseException | None) -> None:
        self._has_begun = True
        if error is None:
            self.update(state="done", exit_code=0)
        elif isinstance(error, Stopped):
            self.event("stopped", reason=str(error), step=self.status["step"])
            self.update(state="stopped", reason=str(error), exit_code=0)
        else:
            exit_code = getattr(error, "exit_code", 1)
            self.update(state="failed", reason=str(error), exit_code=exit_code)
            self.event("failed", reason=str(error), kind=type(error).__name__, exit_code=exit_code)
        if self.rank == 0:
            self._write_events()


@contextlib.contextmanager
def open_run(accelerator, config: TrainConfig) -> Iterator[Run]:
    """Open the run's directory, locked by the main process, in a context that heeds requests to stop.

    Every process calls this; if the directory is taken, all raise.

    Raises:
        DiskError, LostProcessError, OutOfMemory: in place of errors of the system and the libraries.
    """
    folder, device, smaller = config.run_dir, accelerator.device, smaller_settings(config)
    with (
        opened_on_all(accelerator, folder) as run,
        StopRequest(folder) as run.stop,
        disk_errors(folder),
        explain_lost_ranks(accelerator, folder, run.status),
        out_of_memory_advice(device, config.data.resolution, config.batch.train_batch_size, smaller),
    ):
        run.is_alone = accelerator.num_processes == 1
        yield run


def opened_on_all(accelerator, folder: Path) -> Run:
    """Return the Run of this process once all processes have theirs, so that the main one may clean up after all."""
    with raise_on_all_ranks(accelerator):
        run = main_process_first(accelerator, lambda: Run(folder, accelerator.process_index))
    return run

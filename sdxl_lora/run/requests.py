"""Requests to a run: to stop, by a signal, a file or the end of its launcher; and others by files in its folder.

    touch runs/cat/save_now      save a checkpoint after this step
    touch runs/cat/sample_now    draw the sample prompts after this step

The run removes these two files when it obeys. Only the main process looks for them; the other processes learn of them
with the metrics of the steps.
"""

import signal
from pathlib import Path
from typing import NamedTuple

from sdxl_lora.io.file_system import remove
from sdxl_lora.operating_system import launcher, stop_signals


class StopRequest:
    """Request to stop: SIGTERM, SIGINT (a second one ends the run at once), SIGUSR1 (a cluster's warning before the
    time is up), SIGBREAK (Windows: its console is closed), a file `stop`, or the end of the launcher.

    A context manager: outside it the signals have their former handlers.
    """

    def __init__(self, folder: Path):
        self.file = folder / "stop"
        self.signal_name: str | None = None
        self.launcher = launcher()  # a launcher of one process dies of SIGTERM at once and leaves its worker training

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._receive) for number in stop_signals()}
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


class Asked(NamedTuple):
    """Work requested of a run at a step, beside the work that is due."""

    save: bool = False
    sample: bool = False


NOTHING, EVERYTHING = Asked(), Asked(True, True)
FILES = {"save": "save_now", "sample": "sample_now"}  # by request


def asked_of(folder: Path) -> Asked:
    """Return the requests made by files in a run's folder."""
    return Asked(*((folder / FILES[what]).exists() for what in Asked._fields))


def forget(folder: Path, asked: Asked) -> None:
    """Remove the files of requests that are being obeyed."""
    for what, is_asked in asked._asdict().items():
        if is_asked:
            remove(folder / FILES[what])

"""What is asked of a run: to stop, by signals, a file, or as its launcher is gone; and of one that goes on, by a file
in its folder, which goes as it is done.

    touch runs/cat/save_now      save a checkpoint after this step
    touch runs/cat/sample_now    draw the sample prompts after this step

The main process looks for these two; the others hear of them with the numbers of the steps.
"""

import signal
from pathlib import Path
from typing import NamedTuple

from sdxl_lora.io.file_system import remove
from sdxl_lora.operating_system import launcher, stop_signals


class StopRequest:
    """Why the run should stop: SIGTERM, SIGINT (a second one ends it at once), SIGUSR1 (a cluster's warning before the
    time is up), SIGBREAK (Windows: its console is closed), a file `stop`, or its launcher is gone.

    A context manager: outside it the signals do what they did before.
    """

    def __init__(self, folder: Path):
        self.file = folder / "stop"
        self.signal_name: str | None = None
        self.launcher = launcher()  # that for one process dies of SIGTERM at once and leaves its worker training

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
    """What is asked of a run at a step, beside what is due."""

    save: bool = False
    sample: bool = False


NOTHING, EVERYTHING = Asked(), Asked(True, True)
FILES = {"save": "save_now", "sample": "sample_now"}  # by what they ask for


def asked_of(folder: Path) -> Asked:
    """Return what the files in a run's folder ask for."""
    return Asked(*((folder / FILES[what]).exists() for what in Asked._fields))


def forget(folder: Path, asked: Asked) -> None:
    """Remove the files of what is being done."""
    for what, is_asked in asked._asdict().items():
        if is_asked:
            remove(folder / FILES[what])

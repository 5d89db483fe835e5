"""Requests to stop a run: signals, a file, a launcher that is gone."""

import signal
from pathlib import Path

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

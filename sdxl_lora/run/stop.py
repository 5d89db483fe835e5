"""Requests to stop a run: signals, a file, a launcher that is gone."""

import signal
from pathlib import Path

import psutil


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

"""What a run's folder was before a command, so that one that is refused leaves it so. No torch."""

import contextlib
import os
import sys
from pathlib import Path

from sdxl_lora.io.file_system import remove, write_whole
from sdxl_lora.run.requests import FILES
from sdxl_lora.run.status import status_path


class FormerState:
    """The files that a command writes before its first step, as they were; and which folders were not there yet.

    Made before the folder is there. `remember` is called once it is held: the run before may end while this command
    waits for it. Caches are left out: they are work done, which the command with its mistake mended goes on from.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
        self._has_lock = (folder / ".lock").exists()

    def remember(self) -> None:
        """Keep the files as they are now."""
        self._kept = {path: bytes_and_time(path) for path in small_files_of(self.folder)}
        self._new = [path for path in (self.folder / "events.jsonl",) if not path.exists()]

    def put_back(self) -> None:
        """Remove the files that have come since, and write back those that have changed."""
        try:
            for path in {*small_files_of(self.folder), *self._new} - self._kept.keys():
                remove(path)
            for path, (data, since) in self._kept.items():
                if not path.exists() or bytes_and_time(path) != (data, since):
                    write_whole(path, data)
                    os.utime(path, ns=(since, since))
        except OSError as error:
            print(f"cannot leave {self.folder} as it was: {error}", file=sys.stderr)
        if not self._has_lock:
            with contextlib.suppress(OSError):  # Windows removes it as it is let go
                (self.folder / ".lock").unlink()  # while it is held: later it may be another run's

    def remove_folder(self) -> None:
        """Remove the folders that were not there, once the lock is let go; not what holds more."""
        with contextlib.suppress(OSError):  # caches are in it, or another run by now
            for path in self._missing:
                path.rmdir()


def small_files_of(folder: Path) -> list[Path]:
    """The run's status files, and what is asked of it."""
    asked = [folder / name for name in ("stop", *FILES.values())]
    found = [status_path(folder), *asked, *sorted(folder.glob("status-rank-*.json"))]
    return [path for path in found if path.is_file()]


def bytes_and_time(path: Path) -> tuple[bytes, int]:
    """Return what a file holds, and since when, in nanoseconds."""
    return path.read_bytes(), path.stat().st_mtime_ns

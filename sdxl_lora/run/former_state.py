"""Former state of a run's folder, which a refused command restores. No torch."""

import contextlib
import os
import sys
from pathlib import Path

from sdxl_lora.io.file_system import remove, write_whole
from sdxl_lora.run.requests import FILES
from sdxl_lora.run.status import status_path


class FormerState:
    """Former content of the files that a command writes before its first step, and the folders that were missing.

    Create it before the folder. Call `remember` once the folder is locked: the former run may end while this command
    waits. Caches are left out, because the corrected command can use them.
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
        """Remove the files that are new since, and write back those that have changed."""
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
            with contextlib.suppress(OSError):  # Windows removes it on release
                (self.folder / ".lock").unlink()  # while it is held: later it may be another run's

    def remove_folder(self) -> None:
        """Remove the folders that were missing before, after the lock's release, unless they hold anything."""
        with contextlib.suppress(OSError):  # caches, or by now another run
            for path in self._missing:
                path.rmdir()


def small_files_of(folder: Path) -> list[Path]:
    """Return the run's status files and its requests."""
    asked = [folder / name for name in ("stop", *FILES.values())]
    found = [status_path(folder), *asked, *sorted(folder.glob("status-rank-*.json"))]
    return [path for path in found if path.is_file()]


def bytes_and_time(path: Path) -> tuple[bytes, int]:
    """Return a file's content and its modification time in nanoseconds."""
    return path.read_bytes(), path.stat().st_mtime_ns

"""What a run's folder was before a command, so that one that is refused leaves it so. stdlib only."""

import contextlib
import os
import sys
from pathlib import Path

from sdxl_lora.io.file_system import remove, write_whole
from sdxl_lora.run.status import status_path


class FormerState:
    """The files that a command writes before its first step, as they are now; and which folders are not there yet.

    Caches are left out: they are work done, which the command with its mistake mended goes on from.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
        self._kept = {path: bytes_and_time(path) for path in small_files_of(folder)}
        self._new = [path for path in (folder / "events.jsonl", folder / ".lock") if not path.exists()]

    def put_back(self) -> None:
        """Remove the files that have come since, and write back those that have changed; the lock's file stays."""
        try:
            for path in {*small_files_of(self.folder), *self._new} - self._kept.keys():
                if path.name != ".lock":
                    remove(path)
            for path, (data, since) in self._kept.items():
                if not path.exists() or bytes_and_time(path) != (data, since):
                    write_whole(path, data)
                    os.utime(path, ns=(since, since))
        except OSError as error:
            print(f"cannot leave {self.folder} as it was: {error}", file=sys.stderr)

    def remove_folder(self) -> None:
        """Remove the lock's file, once it is let go, and the folders that were not there; not what holds more."""
        with contextlib.suppress(OSError):  # caches are in it, or another run by now
            for path in self._new:
                path.unlink(missing_ok=True)
            for path in self._missing:
                path.rmdir()


def small_files_of(folder: Path) -> list[Path]:
    """The run's status files, and a request to stop."""
    found = [status_path(folder), folder / "stop", *sorted(folder.glob("status-rank-*.json"))]
    return [path for path in found if path.is_file()]


def bytes_and_time(path: Path) -> tuple[bytes, int]:
    """Return what a file holds, and since when, in nanoseconds."""
    return path.read_bytes(), path.stat().st_mtime_ns

"""Reading untrusted files whole and once. Regular files only, since a pipe or device may never end. stdlib only."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sdxl_lora.config.names import printable
from sdxl_lora.errors import DataError

MOST_BYTES = 2**30  # an uncompressed image of 128 MP in 16 bits
BLOCK_BYTES = 2**20
OPENED_BY_DATASETS = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".tar")


class FileError(DataError):
    """A file that cannot be read. `reason` is the message without the path."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"{printable(path)}: {reason}")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def open_regular(path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular file for reading, following links.

    Raises:
        FileError: the file is missing, a directory, a pipe or a device; or a read fails while the file is open.
    """
    try:
        check_is_regular(path, os.stat(path).st_mode)  # before opening, which alone may block or rewind a tape
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        file = open(os.open(path, flags), "rb")  # noqa: SIM115
    except FileError:
        raise
    except FileNotFoundError:
        raise FileError(path, "dangling link" if os.path.islink(path) else "no such file") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:  # NUL in the path
        raise FileError(path, f"no such file ({error})") from None
    with file:
        try:
            check_is_regular(path, os.fstat(file.fileno()).st_mode)  # the file that was opened
            yield file
        except OSError as error:
            raise unreadable(path, error) from None


def unreadable(path: Path | str, error: OSError) -> FileError:
    more = "copy it here again; a file on a cloud drive has to be kept on this device first"
    if error.errno in (errno.EACCES, errno.EPERM):
        more = "it must be readable by whoever runs this"
    return FileError(path, f"cannot be read ({error.strerror or error}): {more}")


def check_is_regular(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise FileError(path, f"a {'directory' if stat.S_ISDIR(mode) else 'device or a pipe'}, not a file")


def read_regular(path: Path | str, most_bytes: int = MOST_BYTES) -> bytes:
    """Return all bytes of a regular file.

    Raises:
        FileError: see open_regular; or the file exceeds `most_bytes`.
    """
    blocks, size = [], 0
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(path, size, most_bytes)
        size = 0
        while block := file.read(BLOCK_BYTES):
            size += len(block)
            check_size(path, size, most_bytes)  # some files in /proc report 0 and never end
            blocks.append(block)
    return b"".join(blocks)


def check_size(path: Path | str, size: int, most_bytes: int = MOST_BYTES) -> None:
    if size > most_bytes:
        raise FileError(path, f"{size / 1e6:,.1f} MB, it must be at most {most_bytes / 1e6:,.1f} MB")


def check_readable_by_datasets(folder: Path) -> None:
    """Check the files of a folder that the datasets library would open.

    Raises:
        FileError: one is a pipe or device, which would hang it, or metadata is a dangling link.
    """
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(where, name)
            if not name.lower().endswith(OPENED_BY_DATASETS):
                continue
            if os.path.exists(path):
                check_is_regular(path, os.stat(path).st_mode)
            elif name.startswith("metadata."):
                raise FileError(path, "dangling link")

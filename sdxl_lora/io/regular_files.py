"""Files of strangers, read whole and once: regular ones alone, for a pipe or a device may never end. stdlib only."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sdxl_lora.config.names import printable
from sdxl_lora.errors import DataError

MOST_BYTES = 2**30  # of a picture: 128 MP in 16 bits, stored without compression, have as many
BLOCK_BYTES = 2**20
OPENED_BY_DATASETS = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".tar")


class FileError(DataError):
    """A file that cannot be read. `reason` is the message without the path."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"{printable(path)}: {reason}")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def open_regular(path: Path | str) -> Iterator[BinaryIO]:
    """A regular file for reading, links followed.

    Raises:
        FileError: no file, a directory, a pipe or a device, or a read that fails while the file is open.
    """
    try:
        check_is_regular(path, os.stat(path).st_mode)  # before opening: that alone may wait, or rewind a tape
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        file = open(os.open(path, flags), "rb")  # noqa: SIM115
    except FileError:
        raise
    except FileNotFoundError:
        raise FileError(path, "dangling link" if os.path.islink(path) else "no such file") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:  # a NUL in the path
        raise FileError(path, f"no such file ({error})") from None
    with file:
        try:
            check_is_regular(path, os.fstat(file.fileno()).st_mode)  # the one that was opened
            yield file
        except OSError as error:
            raise unreadable(path, error) from None


def unreadable(path: Path | str, error: OSError) -> FileError:
    more = "copy it here again; a file of a cloud drive has to be kept on this device first"
    if error.errno in (errno.EACCES, errno.EPERM):
        more = "it must be readable by who runs this"
    return FileError(path, f"cannot be read ({error.strerror or error}): {more}")


def check_is_regular(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise FileError(path, f"a {'directory' if stat.S_ISDIR(mode) else 'device or a pipe'}, not a file")


def read_regular(path: Path | str, most_bytes: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file.

    Raises:
        FileError: see open_regular; or more than `most_bytes`.
    """
    blocks, size = [], 0
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(path, size, most_bytes)
        size = 0
        while block := file.read(BLOCK_BYTES):
            size += len(block)
            check_size(path, size, most_bytes)  # some of /proc say 0 and go on for ever
            blocks.append(block)
    return b"".join(blocks)


def check_size(path: Path | str, size: int, most_bytes: int = MOST_BYTES) -> None:
    if size > most_bytes:
        raise FileError(path, f"{size / 1e6:,.1f} MB, it must have at most {most_bytes / 1e6:,.1f} MB")


def check_readable_by_datasets(folder: Path) -> None:
    """
    Raises:
        FileError: a file that `datasets` would open is a pipe or a device, which would hang it; or metadata that a link
            names and that is not there.
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

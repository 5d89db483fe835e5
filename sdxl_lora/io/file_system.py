"""Workarounds for file systems that cannot flush a folder, replace a file or map one into memory.

Such are network file systems, FUSE mounts of object stores, Android and WSL's drives. stdlib only.
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

from sdxl_lora.errors import DiskError

CANNOT_FLUSH = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
CANNOT_FLUSH |= {errno.EBADF, errno.EISDIR}
CANNOT_RENAME = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV}
CANNOT_MAP = {errno.ENODEV, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
CANNOT_MAP |= {
    errno.EAGAIN,
    errno.EPERM,
    errno.EACCES,
    errno.ENOMEM,
}  # limits of a container; if it is more, reading fails too
BUSY = {errno.EINTR, errno.ENOLCK, errno.ETIMEDOUT}  # network mounts that give up or are interrupted
BUSY |= {errno.EBUSY, errno.EAGAIN, *(getattr(errno, name) for name in ("ESTALE", "ETXTBSY") if hasattr(errno, name))}
UNWELL = {errno.EIO, errno.ENOTCONN, *(getattr(errno, name) for name in ("ESTALE",) if hasattr(errno, name))}
# A virus scanner or the web page holds a file open for milliseconds: wait 2 s in all.
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.6)
_said: set[tuple[str, str]] = set()


def say_once(folder: Path, what: str, instead: str, error: Exception) -> None:
    """Warn about a limit of a folder's file system, once per process, device and limit."""
    try:
        device = str(os.stat(folder).st_dev)
    except OSError:
        device = str(folder)
    if (device, what) not in _said:
        _said.add((device, what))
        warnings.warn(f"the file system of {folder} {what} ({error}): {instead}", stacklevel=3)


def cannot_map(error: Exception) -> bool:
    """Return whether an error of the system or of safetensors says that a file cannot be mapped into memory."""
    number = getattr(error, "errno", None)
    return number in CANNOT_MAP or any(f"os error {known})" in str(error) for known in CANNOT_MAP)


def is_busy(error: OSError) -> bool:
    """Return whether the file may be free in a moment: Windows, CIFS and FUSE report open files this way."""
    return isinstance(error, PermissionError) or error.errno in BUSY


def remedy_for(error: Exception) -> str:
    """Return advice on a failed write, phrased as the beginning of a sentence."""
    hidden = re.search(r"\(os error (\d+)\)", str(error))  # Rust's format
    number = int(hidden[1]) if hidden else getattr(error, "errno", None)
    if number == errno.EROFS:
        return "Mount it for writing too, or choose another folder,"
    return "Check the disk and the connection to it," if number in UNWELL else "Make room"


def flush_to_disk(path: Path) -> None:
    """Flush a file or folder to the disk, if the file system supports it."""
    is_folder = path.is_dir()
    if sys.platform == "win32" and is_folder:  # Windows cannot open a directory
        return
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH or not os.access(path, os.R_OK):
            raise
        what = f"cannot flush {'folders' if is_folder else 'files'} to the disk"
        say_once(path if is_folder else path.parent, what, "after a power cut the newest may be missing", error)


def replace(source: Path, target: Path, last: str = "") -> None:
    """Rename a file or folder, overwriting a file at `target`; wait for programs that have it open.

    If the file system cannot rename, copy it and remove the original.

    Args:
        last: name of the file to copy last when copying a folder.
    Raises:
        DiskError: a program kept it open the whole time.
        OSError: anything else.
    """
    for pause in (*PAUSES, None):
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if error.errno in CANNOT_RENAME:
                instead = "they are copied, which takes longer; what a crash leaves half copied is made again"
                say_once(target.parent, "cannot rename", instead, error)
                break
            if not is_busy(error):
                raise
            if pause is None:
                raise DiskError(
                    f"cannot rename {source} to {target} ({error.strerror}): "
                    "close the programs that have it open, or check who may write there"
                ) from error
            time.sleep(pause)
    if source.is_dir():
        copy_folder(source, target, last)
        shutil.rmtree(source)
    else:
        shutil.copyfile(source, target)
        flush_to_disk(target)
        source.unlink()


def copy_folder(source: Path, target: Path, last: str) -> None:
    """Copy all files of a folder, each flushed to the disk before the next."""
    target.mkdir()
    for path in sorted(filter(Path.is_file, source.rglob("*")), key=lambda path: (path.name == last, path)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        flush_to_disk(copy)


def write_whole(path: Path, content: bytes | Iterable[bytes], flush: bool = True, shared: bool = False) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed.

    Args:
        content: all bytes, or their pieces in order.
        flush: False if an empty file after a power cut is acceptable.
        shared: other processes may write the same file at the same time, also on other machines.
    """
    temporary = path.with_name(f".tmp-{path.name}" + (f".{socket.gethostname()}-{os.getpid()}" if shared else ""))
    try:
        with open(temporary, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # a partial file would only take up space
        if error.errno is not None:
            error.filename = str(path)  # errors of a full disk name no file
        raise


def remove(path: Path) -> None:
    """Remove a file, a folder with its contents, or a link but not its target; wait as `replace` does.

    Raises:
        OSError: it cannot be removed.
    """
    for pause in (*PAUSES, None):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except OSError as error:
            if pause is None or not (is_busy(error) or error.errno == errno.ENOTEMPTY):  # NFS keeps open files
                raise
            time.sleep(pause)


def file_sha256(*paths: Path) -> str:
    """Return the hexadecimal SHA-256 of the files' contents, concatenated."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def weights_sha256(*paths: Path) -> str:
    """Return `file_sha256`; a file in the Hub's cache has it as its name already, which saves reading gigabytes."""
    name = paths[0].resolve().name
    return name if len(paths) == 1 and re.fullmatch(r"[0-9a-f]{64}", name) else file_sha256(*paths)

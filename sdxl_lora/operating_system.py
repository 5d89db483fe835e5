"""What differs between Linux, macOS and Windows, so that no other module asks which one it runs on. No torch.

Windows knows few signals and no process groups, refuses to replace or remove a file that another program has open,
cannot open folders, and writes in the locale's encoding where nobody says otherwise.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from sdxl_lora.errors import DiskError

# A fork copies the locks of torch's threads in whatever state they are; Windows and macOS start processes by spawn.
PROCESSES = multiprocessing.get_context("spawn")
# A scanner, or a page that reads, has a file open for milliseconds: 2 s in all.
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.6)
# What Rust calls a full disk there; elsewhere it gives the C library's number.
WINDOWS_DISK_ERRORS = {39, 112} if sys.platform == "win32" else set()
RESERVED_NAMES = {  # devices of Windows, whatever stands behind a dot
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"),
}


def signal_named(name: str) -> signal.Signals | None:
    """None where this system has no such signal."""
    return getattr(signal, name, None)


def stop_signals() -> list[signal.Signals]:
    """By which a process is asked to end in good order; SIGUSR1 is a cluster's warning, SIGBREAK a closed console."""
    found = map(signal_named, ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK"))
    return [number for number in found if number is not None]


def start_apart(command: Sequence[str], folder: Path, log: IO, environment: Mapping[str, str]) -> subprocess.Popen:
    """A process that lives on when this one, its terminal or its console is gone; `end_all` ends it with its children.

    Args:
        log: takes what it prints, in UTF-8 whatever the locale.
    """
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:
        flags = 0
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Windows passes over it
        creationflags=flags,
    )


def end_all(pid: int, at_once: bool = False) -> None:
    """Ask a process of `start_apart`, and all that it started, to end; or end them. No error where it is gone."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL if at_once else signal.SIGTERM)
        return
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        for each in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                each.kill()  # Windows knows no asking


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there and more than a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's, on macOS
        return True


def launcher() -> psutil.Process | None:
    """The parent of this process, where it is accelerate's launcher."""
    try:
        parent = psutil.Process().parent()
        return parent if parent and any("accelerate" in word for word in parent.cmdline()) else None
    except psutil.Error:  # macOS, hidepid, a parent with more rights: it may not be looked at
        return None


def usable_cpus() -> int:
    """The processors that this process may use: a cluster's job or a container has fewer than the machine."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def replace(source: Path, target: Path) -> None:
    """Rename a file or a folder, over `target` where that is a file; waits for programs that have it open.

    Raises:
        DiskError: one has it open all the time.
        OSError: anything else.
    """
    for pause in (*PAUSES, None):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if pause is None:
                raise DiskError(
                    f"cannot rename {source} to {target} ({error.strerror}): "
                    "close the programs that have it open, or see who may write there"
                ) from error
            time.sleep(pause)


def write_whole(path: Path, content: bytes, flush: bool = True) -> None:
    """Write a file whole or not at all: under another name, then renamed.

    Args:
        flush: False where it does not matter that the file may be empty after the power goes.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # half of it would only take the room away
        if error.errno is not None:
            error.filename = str(path)  # a full disk names no file
        raise


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link without what it leads to; waits as `replace` does.

    Raises:
        OSError
    """
    for pause in (*PAUSES, None):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except PermissionError:
            if pause is None:
                raise
            time.sleep(pause)


def flush_to_disk(path: Path) -> None:
    """Put a file's content, or a folder's names, on the disk: they stay when the power goes."""
    if sys.platform == "win32" and path.is_dir():  # it cannot open a folder, and keeps the names by itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def print_any_name() -> None:
    """Let no letter of a name end the program where the terminal's or the log's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")


def is_reserved_name(name: str) -> bool:
    """Whether Windows takes a file name for a device: CON, nul.txt, aux.safetensors."""
    return name.split(".")[0].rstrip(" ").lower() in RESERVED_NAMES

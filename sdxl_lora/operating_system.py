"""Differences between Linux, macOS and Windows, so that no other module checks the system. Imports no torch.

Windows has few signals and no process groups, refuses to replace or remove a file that another program has open,
cannot open folders, and writes in the locale's encoding unless told otherwise.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

# A fork copies the locks of torch's threads in whatever state they are; Windows and macOS start processes by spawn.
PROCESSES = multiprocessing.get_context("spawn")
# Rust's numbers for a full disk on Windows; elsewhere it reports the C library's.
WINDOWS_DISK_ERRORS = {39, 112} if sys.platform == "win32" else set()
GPU_MEMORY_SPILLS = sys.platform == "win32"  # its drivers spill into RAM without an error
RESERVED_NAMES = {  # devices of Windows, with any extension
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"),
}


def signal_named(name: str) -> signal.Signals | None:
    """Return a signal by name; None if this system lacks it."""
    return getattr(signal, name, None)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that end a process gracefully; SIGUSR1 is a cluster's warning, SIGBREAK a closed window."""
    found = map(signal_named, ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK"))
    return [number for number in found if number is not None]


def closing_signals() -> list[signal.Signals]:
    """Return the signals that ask a server to end or that follow the closing of its terminal."""
    found = map(signal_named, ("SIGTERM", "SIGHUP", "SIGBREAK"))
    return [number for number in found if number is not None]


def start_apart(command: Sequence[str], folder: Path, log: IO, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a process that outlives this one, its terminal and its console; `end_all` ends it with its children.

    Args:
        log: receives its output, in UTF-8 whatever the locale.
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
        start_new_session=True,  # ignored on Windows
        creationflags=flags,
    )


def end_all(pid: int, at_once: bool = False) -> None:
    """Ask a process of `start_apart` and its descendants to end, or kill them; no error if they are gone."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL if at_once else signal.SIGTERM)
        return
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        for each in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                each.kill()  # Windows cannot ask


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # the last two: no process ever had this number
        return False
    except psutil.AccessDenied:  # another user's, on macOS
        return True


def refusal_to_lock(path: Path) -> OSError | None:
    """Return the error if nobody can lock a file; None if it can be locked or another process holds the lock.

    filelock takes EACCES for a held lock.
    """
    if sys.platform == "win32":  # where locks always work
        return None
    import fcntl

    try:
        with open(path, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        return error
    return None  # it is free by now


def launcher() -> psutil.Process | None:
    """Return the parent process if it is accelerate's launcher."""
    try:
        parent = psutil.Process().parent()
        return parent if parent and any("accelerate" in word for word in parent.cmdline()) else None
    except psutil.Error:  # macOS, hidepid, or a parent with more rights: no permission to inspect it
        return None


def usable_cpus() -> int:
    """Return the number of processors available to this process, which may be limited by a cluster job or container."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def print_any_name() -> None:
    """Keep characters of a name from crashing the program if the terminal's or log's encoding lacks them."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks' streams lack it
            stream.reconfigure(errors="backslashreplace")


def is_reserved_name(name: str) -> bool:
    """Return whether Windows takes a file name for a device: CON, nul.txt, aux.safetensors."""
    return name.split(".")[0].rstrip(" ").lower() in RESERVED_NAMES

"""What differs between Linux, macOS and Windows, so that no other module asks which one it runs on. No torch.

Windows knows few signals and no process groups, refuses to replace or remove a file that another program has open,
cannot open folders, and writes in the locale's encoding where nobody says otherwise.
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
# What Rust calls a full disk there; elsewhere it gives the C library's number.
WINDOWS_DISK_ERRORS = {39, 112} if sys.platform == "win32" else set()
GPU_MEMORY_SPILLS = sys.platform == "win32"  # its drivers put into RAM what does not fit, without an error
RESERVED_NAMES = {  # devices of Windows, whatever stands behind a dot
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"),
}


def signal_named(name: str) -> signal.Signals | None:
    """None where this system has no such signal."""
    return getattr(signal, name, None)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that end a process in good order; SIGUSR1 is a cluster's warning, SIGBREAK a closed window."""
    found = map(signal_named, ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK"))
    return [number for number in found if number is not None]


def closing_signals() -> list[signal.Signals]:
    """Return the signals that ask a server to end, or come as its terminal is closed."""
    found = map(signal_named, ("SIGTERM", "SIGHUP", "SIGBREAK"))
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
    """Return whether a process of this machine is there and more than a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # the last two: no process ever had this number
        return False
    except psutil.AccessDenied:  # another user's, on macOS
        return True


def refusal_to_lock(path: Path) -> OSError | None:
    """Why a file cannot be locked by anybody; None where another process holds it, which filelock reads in EACCES."""
    if sys.platform == "win32":  # whose locks always work
        return None
    import fcntl

    try:
        with open(path, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        return error
    return None  # it was let go this moment


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


def print_any_name() -> None:
    """Let no letter of a name end the program where the terminal's or the log's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")


def is_reserved_name(name: str) -> bool:
    """Return whether Windows takes a file name for a device: CON, nul.txt, aux.safetensors."""
    return name.split(".")[0].rstrip(" ").lower() in RESERVED_NAMES

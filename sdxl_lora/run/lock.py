"""Lock that allows one run at a time in a folder, even on a file system shared by several machines.

On one machine the system's file lock suffices: it is released however a process ends. It may not work between machines
(NFS with local_lock, Lustre without flock); there the holder's sign of life counts, a file that it touches every few
seconds. stdlib and filelock.
"""

import contextlib
import errno
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from sdxl_lora.errors import ConfigError
from sdxl_lora.io.file_system import say_once
from sdxl_lora.operating_system import is_alive, refusal_to_lock

HEARTBEAT_SECONDS = 5  # between two signs of life
SILENT_SECONDS = 60  # without a sign of life, after which the holder counts as gone
NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
NO_LOCKS_HERE |= {errno.EACCES, errno.EPERM, errno.ENOTTY, errno.EINVAL, errno.EBADF}


class RunLock:
    """Lock of a run's folder, held from construction until `release` or the end of the process.

    Raises:
        ConfigError: another process holds the folder, here or on another machine.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder, self.sign = folder, folder / ".holder"
        self._lock = FileLock(folder / ".lock", fallback_to_soft=False)
        self._is_locked = self._try_to_lock()
        try:
            self._take_over()
        except ConfigError:
            self._lock.release(force=True)
            raise
        self._ended = threading.Event()
        threading.Thread(target=self._show_life, daemon=True).start()

    def release(self) -> None:
        self._ended.set()
        self.sign.unlink(missing_ok=True)
        self._lock.release(force=True)

    def _try_to_lock(self) -> bool:
        """Take the lock; return False where the file system cannot lock and only signs of life count.

        Raises:
            ConfigError: another process has the lock.
        """
        try:
            self._lock.acquire(timeout=0)
            return True
        except Timeout:
            if (why := refusal_to_lock(Path(self._lock.lock_file))) is None:
                raise self._taken() from None
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                raise
            why = error
        say_once(self.folder, "cannot lock", "only signs of life keep a second run out of it", why)
        return False

    def _take_over(self) -> None:
        """Write our sign of life; first wait for that of another machine, which may have gone down, to grow old."""
        here, until = socket.gethostname(), time.monotonic() + SILENT_SECONDS + HEARTBEAT_SECONDS
        while True:
            is_late = time.monotonic() > until  # checked first: signs grow old while this process is paused
            try:
                with open(self.sign, "x", encoding="utf-8") as file:  # succeeds on one machine only
                    json.dump({"host": here, "pid": os.getpid()}, file)
                return
            except FileExistsError:
                pass
            is_here, pid = self._holder().get("host") == here, self._holder().get("pid")
            is_gone = self._is_locked or not (isinstance(pid, int) and is_alive(pid))  # a holder here without a lock
            if (is_here and is_gone) or self._age() > SILENT_SECONDS:
                self.sign.unlink(missing_ok=True)
            elif is_here or is_late:
                raise self._taken()
            else:
                time.sleep(min(1, HEARTBEAT_SECONDS))

    def _age(self) -> float:
        """Return the seconds since the last sign of life, both times by the file server's clock."""
        try:
            with tempfile.TemporaryFile(dir=self.folder) as now, open(self.sign, encoding="utf-8") as sign:
                # Opening a file makes a network file system refresh its attributes.
                return os.fstat(now.fileno()).st_mtime - os.fstat(sign.fileno()).st_mtime
        except FileNotFoundError:
            return float("inf")

    def _holder(self) -> dict:
        try:
            return json.loads(self.sign.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _taken(self) -> ConfigError:
        holder = self._holder()
        where = f"pid {holder.get('pid', 'unknown')} on {holder.get('host', 'unknown')}"
        return ConfigError(f"another run ({where}) is at work in {self.folder}: choose another --output_dir")

    def _show_life(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.sign)

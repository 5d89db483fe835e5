"""One run at a time in a folder, also where several machines share the folder.

On one machine the system's file lock tells: it lets go however a process ends. Between machines such locks may not
reach (NFS with local_lock, Lustre without flock); there the holder's sign of life tells, a file that it touches every
few seconds. stdlib and filelock.
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
SILENT_SECONDS = 60  # without one, the holder is gone
NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
NO_LOCKS_HERE |= {errno.EACCES, errno.EPERM, errno.ENOTTY, errno.EINVAL, errno.EBADF}


class RunLock:
    """Held from the beginning until `release`, or until the process ends.

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
        """Return whether the folder's file system can lock; where it cannot, the sign of life tells alone.

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
        """Write our sign, once that of another machine is old: whoever takes the place of one that went down waits."""
        here, until = socket.gethostname(), time.monotonic() + SILENT_SECONDS + HEARTBEAT_SECONDS
        while True:
            is_late = time.monotonic() > until  # asked first: a sign may grow old while this process does not run
            try:
                with open(self.sign, "x", encoding="utf-8") as file:  # one machine alone succeeds
                    json.dump({"host": here, "pid": os.getpid()}, file)
                return
            except FileExistsError:
                pass
            is_here, pid = self._holder().get("host") == here, self._holder().get("pid")
            is_gone = self._is_locked or not (isinstance(pid, int) and is_alive(pid))  # who is here and has no lock
            if (is_here and is_gone) or self._age() > SILENT_SECONDS:
                self.sign.unlink(missing_ok=True)
            elif is_here or is_late:
                raise self._taken()
            else:
                time.sleep(min(1, HEARTBEAT_SECONDS))

    def _age(self) -> float:
        """Seconds since the last sign of life, both ends by the clock of the machine that keeps the files."""
        try:
            with tempfile.TemporaryFile(dir=self.folder) as now, open(self.sign, encoding="utf-8") as sign:
                # A network file system looks anew at a file that is opened.
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

"""Errors of a full or failing disk, in one sentence that says what is needed, free and safe."""

import contextlib
import errno
import re
import shutil
from pathlib import Path

from sdxl_lora.errors import DiskError
from sdxl_lora.io.file_system import UNWELL, remedy_for
from sdxl_lora.operating_system import WINDOWS_DISK_ERRORS
from sdxl_lora.run.checkpoints import checkpoints, problem_with

DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextlib.contextmanager
def disk_errors(run_dir: Path, temporary: Path | None = None):
    """Turn errors of a full or failing disk into a DiskError that says what is needed, free and safe.

    `temporary` is removed then.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskError) or not is_disk_error(error):
            raise
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(disk_trouble(run_dir, error)) from error


def disk_trouble(run_dir: Path, error: Exception) -> str:
    """Describe the place of the error, free and needed space, and the newest good checkpoint, if known."""
    place, free, good, size = Path(getattr(error, "filename", None) or run_dir), "an unknown number of", None, 0
    with contextlib.suppress(OSError):
        free = f"{shutil.disk_usage(next(path for path in (place, *place.absolute().parents) if path.exists())).free:,}"
    with contextlib.suppress(OSError):
        good = next((path for path in reversed(checkpoints(run_dir)) if problem_with(path) is None), None)
        size = sum(path.stat().st_size for path in good.rglob("*")) if good else 0
    return (
        f"cannot write to {place} ({error}): {free} bytes are free"
        + (f", a checkpoint needs about {size:,}" if good else "")
        + f". {remedy_for(error)} and run the same command again; "
        + (f"{good.name} is good." if good else "there is no good checkpoint yet.")
    )


def is_disk_error(error: Exception) -> bool:
    """Return whether the disk caused an error, whose number torch.save and safetensors hide in their exceptions."""
    if isinstance(error, OSError) and (
        error.errno in DISK_ERRNOS or (error.errno in UNWELL and error.filename is not None)  # a file's, no socket's
    ):
        return True
    words = str(error)
    hidden = re.search(r"\(os error (\d+)\)", words)  # Rust's
    cxx = ("unexpected pos", "PytorchStreamWriter failed", "file write failed", "iostream")
    return bool(hidden and int(hidden[1]) in DISK_ERRNOS | WINDOWS_DISK_ERRORS) or any(sign in words for sign in cxx)

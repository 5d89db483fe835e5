"""Upload of images and captions in pieces, into a folder of a project.

A file grows in the hidden folder .uploading, which preprocess ignores, and gets its real name when it is complete. So
no partial image is ever read, and a broken upload resumes where it stopped. Existing files are never replaced. No
gradio.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sdxl_lora.errors import ConfigError, DiskError
from sdxl_lora.folders.caption_files import CAPTION_SUFFIXES, alike
from sdxl_lora.images.decode import HAS_HEIF, HEIF_SUFFIXES, UNSUPPORTED_SUFFIXES, is_image_name
from sdxl_lora.io.file_system import file_sha256, flush_to_disk, remedy_for, remove
from sdxl_lora.io.regular_files import MOST_BYTES
from sdxl_lora.operating_system import is_reserved_name
from webui.settings.workspace import Workspace

PIECE_BYTES = 2**20
MOST_FILES = 20_000
MOST_FOLDERS = 4  # nested
LONGEST = 200  # bytes of a name, with room for prefixes and suffixes
ELSEWHERE = re.compile(
    r'[<>:"|?*\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)  # not in every system's names
UPLOADING = ".uploading"
DAYS_KEPT = 7  # of broken uploads
LOG = logging.getLogger(__name__)
_writing = threading.Lock()  # one writer at a time, if two tabs send the same file


@dataclass(frozen=True)
class Incoming:
    """A file as the browser describes it.

    Attributes:
        path: its name behind those of the folders it was chosen with, "/" between them.
        size: bytes.
        changed: time of change in milliseconds; with path and size it identifies the file.
    """

    path: str
    size: int
    changed: int = 0

    @property
    def key(self) -> str:
        facts = f"{self.path}\0{self.size}\0{self.changed}"
        return hashlib.blake2b(facts.encode(errors="replace"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Answer:
    """State of an upload.

    Attributes:
        state: "new"; "there", a file of this size, which `compared` or `put` then compares; "done"; or "refused".
        at: number of its bytes received or compared.
        why: the reason of a refusal.
        name: the name that it is kept under.
    """

    state: str
    at: int = 0
    why: str = ""
    name: str = ""


def upload_folder(places: Workspace, project: str, name: str) -> Path:
    """Return the project's folder for uploaded images.

    Raises:
        ConfigError: the name is invalid, or is that of a dataset or of the runs.
    """
    folder = places.dataset_folder(project, name)
    if (folder / "metadata.jsonl").exists() or (folder / ".preprocess").exists():
        raise ConfigError(f"{name} is a prepared dataset: choose another folder for your images")
    return folder


def clean_name(path: str) -> PurePosixPath:
    """Return a portable name inside the folder, whatever the browser sends; unportable characters become "_".

    Raises:
        ConfigError: nothing is left of the name, or it is too long or too deep.
    """
    parts = []
    for part in unicodedata.normalize("NFC", path).replace("\\", "/").split("/"):
        if part.strip() in ("", ".", ".."):
            continue
        part = ELSEWHERE.sub("_", part).strip().rstrip(". ")
        part = f"_{part}" if is_reserved_name(part) else part
        parts.append(part)
    if not parts or not parts[-1]:
        raise ConfigError(f"{path[:80]!r} is not a file name")
    if len(parts) > MOST_FOLDERS + 1:
        raise ConfigError(f"it is nested more than {MOST_FOLDERS} folders deep")
    if any(len(part.encode()) > LONGEST for part in parts):
        raise ConfigError(f"its name is longer than {LONGEST} bytes")
    return PurePosixPath(*parts)


def refusal(name: PurePosixPath) -> str:
    """Return the reason to refuse a file of this name; "" for images and captions."""
    lower = name.name.lower()
    if any(part.startswith(".") for part in name.parts):
        return "a hidden file"
    if lower.endswith(HEIF_SUFFIXES) and not HAS_HEIF:
        return "HEIC photos need pillow-heif where this page runs: pip install pillow-heif, or send them as JPEG"
    if lower.endswith(UNSUPPORTED_SUFFIXES) and not is_image_name(lower):
        return "a format that is not supported: convert it to JPEG or PNG"
    if lower.startswith("metadata.") or not (is_image_name(lower) or lower.endswith(CAPTION_SUFFIXES)):
        return "neither an image nor a caption beside one"
    return ""


def begin(folder: Path, files: Sequence[Incoming], now: float | None = None) -> list[Answer]:
    """Return the state of each file before any is sent, and remove old uploads that broke off.

    Args:
        now: seconds since 1970; default: this moment.
    Raises:
        ConfigError: too many files.
        DiskError: they do not fit on the disk.
    """
    if len(files) > MOST_FILES:
        raise ConfigError(f"{len(files)} files are more than the limit of {MOST_FILES}: send them in several folders")
    remove_abandoned(folder, {file.key for file in files}, time.time() if now is None else now)
    answers, taken = [], set()
    for file in files:
        answer = standing(folder, file)
        if answer.state != "refused":
            if alike(answer.name) in taken:
                answer = Answer("refused", why="another file of this upload has the same name", name=answer.name)
            taken.add(alike(answer.name))
        answers.append(answer)
    wanted = sum(file.size - answer.at for file, answer in zip(files, answers, strict=True) if answer.state == "new")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if wanted > free:
        raise DiskError(f"the images need {wanted / 1e6:.0f} MB, {free / 1e6:.0f} MB are free there: make room first")
    return answers


def remove_abandoned(folder: Path, wanted: set[str], now: float) -> None:
    """Remove partial files that have not changed for DAYS_KEPT and are not among the wanted ones."""
    for part in (folder / UPLOADING).glob("*.part"):
        try:
            status = part.stat()
            if part.stem not in wanted and now - status.st_mtime > DAYS_KEPT * 86400:
                remove(part)
                when, size = time.strftime("%Y-%m-%d", time.localtime(status.st_mtime)), status.st_size / 1e6
                LOG.warning("removed %s: %.1f MB of an upload interrupted on %s", part, size, when)
        except FileNotFoundError:
            continue  # another tab has removed or finished it
        except OSError as error:
            LOG.warning("%s of an interrupted upload cannot be removed: %s", part, error.strerror)


def standing(folder: Path, file: Incoming) -> Answer:
    try:
        name = clean_name(file.path)
    except ConfigError as error:
        return Answer("refused", why=str(error), name=file.path[:80])
    target = folder / name
    why = refusal(name) or ("an empty file" if file.size <= 0 else "")
    why = why or (f"larger than {MOST_BYTES // 2**20} MiB" if file.size > MOST_BYTES else "")
    if why or not target.resolve().is_relative_to(folder.resolve()):
        return Answer("refused", why=why or "a link leads out of the folder", name=str(name))
    if target.exists() or target.is_symlink():
        is_same = target.is_file() and target.stat().st_size == file.size
        return Answer("there", name=str(name)) if is_same else Answer("refused", why=TAKEN, name=str(name))
    part = folder / UPLOADING / f"{file.key}.part"
    # A complete file that failed to get its name asks for its last byte again, which retries the renaming.
    return Answer("new", min(part.stat().st_size, file.size - 1) if part.is_file() else 0, name=str(name))


TAKEN = "a different file with this name is already there, and stays: choose another folder, or rename one of them"


def compared(folder: Path, file: Incoming, sha256: str) -> Answer:
    """Return the state of a file after comparing hashes: done if the existing file has this one."""
    now = standing(folder, file)
    return (
        beside(folder, now, file, file.size, lambda path: file_sha256(path) == sha256) if now.state == "there" else now
    )


def beside(folder: Path, now: Answer, file: Incoming, end: int, is_same: Callable[[Path], bool]) -> Answer:
    """Return the state of a file that exists already, after comparing it up to `end`."""
    try:
        if not is_same(folder / now.name):
            return Answer("refused", why=TAKEN, name=now.name)
    except OSError as error:
        why = f"a file with this name is already there, and cannot be read: {error.strerror}"
        return Answer("refused", why=why, name=now.name)
    return Answer("done" if end == file.size else "there", end, name=now.name)


def piece_of(path: Path, at: int, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(count)


def put(folder: Path, file: Incoming, at: int, data: bytes) -> Answer:
    """Store one piece of a file.

    If a file of the same size exists already, each piece is compared with it instead, and a difference is refused.

    Args:
        at: the piece's first byte; a piece that does not continue the file is ignored, and the answer says where it
            ends.
    Raises:
        ConfigError: the piece is too large, or goes beyond the file.
        DiskError: it cannot be written; the bytes before it stay.
    """
    if len(data) > PIECE_BYTES or at < 0 or at + len(data) > file.size or not data:
        raise ConfigError(f"bytes {at} to {at + len(data)} are not a piece of {file.path[:80]!r}")
    with _writing:
        now = standing(folder, file)
        if now.state == "refused":
            return now
        if now.state == "there":
            return beside(folder, now, file, at + len(data), lambda path: piece_of(path, at, len(data)) == data)
        if at != now.at:
            return now
        part = folder / UPLOADING / f"{file.key}.part"
        try:
            write_piece(part, at, data)
            if at + len(data) < file.size:
                return Answer("new", at + len(data), name=now.name)
            finish(part, folder / now.name)
        except FileExistsError:
            return Answer("refused", why=TAKEN, name=now.name)
        except OSError as error:
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
            raise DiskError(
                f"cannot write {now.name}: {why}. {remedy_for(error)} and send them again: what is here stays"
            ) from None
    return Answer("done", file.size, name=now.name)


def write_piece(part: Path, at: int, data: bytes) -> None:
    """Write a piece at byte `at`, which becomes the end before it; on failure none of the piece stays."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab", buffering=0) as file:
        try:
            file.truncate(at)
            written = file.write(data)
            if written != len(data):  # the disk took only a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(at)
            raise


def finish(part: Path, target: Path) -> None:
    """Give a complete file its name unless that is taken.

    Raises:
        FileExistsError: it is taken.
    """
    flush_to_disk(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(part, target)  # unlike a rename, it replaces nothing
        part.unlink()
    except FileExistsError:
        raise
    except OSError:  # the file system has no links
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(part, target)
    if not any(part.parent.iterdir()):
        remove(part.parent)

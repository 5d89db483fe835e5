"""State that runs share in the dataset's hidden folder .preprocess, so that no run repeats another's work.

    images/         crops that are finished and not yet published
    pictures/       facts about each image's crops, by the identity of its bytes and the recipe
    captions/       the captioner's texts, by crop and captioner
    captioner_files.json    digests of the captioner's files, by path, size and time of change
    removed.jsonl   rows whose images left the source folder, kept for their captions and masks
    before_recaption.jsonl  rows as they were before their captions were made anew, oldest first
    taken_out/      files of images removed on the page, and painted masks that fit no crop any more
    written.json    texts that earlier runs wrote into metadata.jsonl: any other text there is a person's
    lock, pid       of the run at work

datasets does not read hidden folders.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from preprocess.jobs.processes import Team
from sdxl_lora.errors import ConfigError, DiskError
from sdxl_lora.io import file_system
from sdxl_lora.io.file_system import say_once
from sdxl_lora.operating_system import is_alive, refusal_to_lock
from sdxl_lora.run.lock import NO_LOCKS_HERE

Record = TypeVar("Record")


class Shelf:
    """Small JSON records by key, one file each, so that any number of processes can read and add them.

    damaged: keys of records that could not be used, for example after a crash while writing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.damaged: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, parse: Callable[[Any], Record]) -> Record | None:
        """Return the record as parsed by `parse`; None if there is none or it is damaged.

        Args:
            parse: raises TypeError, ValueError or KeyError for an invalid record.
        """
        try:
            return parse(json.loads((self.folder / f"{key}.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError, KeyError):
            self.damaged.add(key)
            return None

    def put(self, key: str, value: Any) -> None:
        write_whole(self.folder / f"{key}.json", json.dumps(value, ensure_ascii=False), sync=False)

    def rename(self, key: str, new: str | None) -> None:
        """Give a record another key; remove it if that key is taken or None."""
        path = self.folder / f"{key}.json"
        with contextlib.suppress(FileNotFoundError):
            if new is None or (self.folder / f"{new}.json").exists():
                path.unlink()
            else:
                path.rename(self.folder / f"{new}.json")

    def keep_only(self, keys: set[str]) -> None:
        for file in self.folder.iterdir():
            if file.stem not in keys:
                file.unlink()


Texts = list[tuple[str, str | None]]  # source and the text that we wrote; None for a person's text or no row


class Written:
    """Digests of our texts in metadata.jsonl, by the sources that a finished run has published.

    is_damaged: the file could not be read, so nothing of this is known.
    """

    def __init__(self, folder: Path):
        self.path, self.is_damaged = folder / "written.json", False
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            check_written(content)
        except FileNotFoundError:
            content = {}
        except (OSError, ValueError):
            content, self.is_damaged = {}, True
        self.published: dict[str, list[str]] = content.get("published", {})
        self.pending: dict[str, list[str]] = content.get("pending", {})
        self.old_files: set[str] = set(content.get("old_files", []))  # image files to delete after publishing

    def is_ours(self, source: str, text: str) -> bool:
        return text_digest(text) in [*self.published.get(source, []), *self.pending.get(source, [])]

    def announce(self, texts: Texts, old_files: set[str]) -> None:
        """Record the texts before publishing: after a kill in between, both old and new rows are known as ours."""
        self.pending, self.old_files = digests_of(texts), self.old_files | old_files
        self.save()

    def confirm(self, texts: Texts) -> None:
        self.published, self.pending, self.old_files = digests_of(texts), {}, set()
        self.save()

    def save(self) -> None:
        content = {"published": self.published, "pending": self.pending}
        write_whole(self.path, json.dumps({**content, "old_files": sorted(self.old_files)}))


def check_written(content: Any) -> None:
    """Raise ValueError if `Written.save` did not write the content."""
    tables = [content.get(name, {}) for name in ("published", "pending")] if isinstance(content, dict) else [None]
    lists = [digests for table in tables if isinstance(table, dict) for digests in table.values()]
    lists += [content.get("old_files", [])] if isinstance(content, dict) else []
    if not all(isinstance(table, dict) for table in tables) or not all(map(is_list_of_texts, lists)):
        raise ValueError("not of the shape that Written.save gives it")


def is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def digests_of(texts: Texts) -> dict[str, list[str]]:
    digests: dict[str, list[str]] = {}
    for source, text in texts:
        digests.setdefault(source, []).extend([] if text is None else [text_digest(text)])
    return digests


def words_of_row(row: dict) -> str:
    """Return all captions of a row of metadata.jsonl as one text; its `text` if it has no list of captions."""
    several = row.get("captions")
    return "\0".join([row["text"], *several]) if several and is_list_of_texts(several) else row["text"]


def text_digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def jsonl(rows: Iterable[dict]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def keep_before_recaption(folder: Path, rows: Iterable[dict]) -> None:
    """Add rows to before_recaption.jsonl in `folder`, after those of earlier recaptions; none is added twice.

    Raises:
        DiskError: the disk is full or refuses; the file stays as it was.
    """
    path = folder / "before_recaption.jsonl"
    kept = path.read_bytes() if path.exists() else b""
    if kept and not kept.endswith(b"\n"):
        kept += b"\n"
    known = set(kept.splitlines(keepends=True))
    new = [line for row in jsonl(rows) if (line := row.encode()) not in known]
    if new:
        write_whole(path, kept + b"".join(new))


def write_whole(path: Path, content: str | bytes | Iterable[str], sync: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        content: all of it, or the pieces of a text in order, so that a long one is never in memory as a whole.
        sync: False where it does not matter that the file may be empty after a power cut.
    Raises:
        DiskError: the disk is full or refuses.
    """
    size = 0

    def pieces() -> Iterator[bytes]:
        nonlocal size
        for piece in [content] if isinstance(content, str | bytes) else content:
            data = piece.encode() if isinstance(piece, str) else piece
            size += len(data)
            yield data

    try:
        file_system.write_whole(path, pieces(), sync, shared=True)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise DiskError(
            f"cannot write {path} ({size / 1e6:.2f} MB): {error.strerror}; {free / 1e6:.2f} MB are free there. "
            "What is done is kept, and the same command continues from there"
        ) from None


@contextlib.contextmanager
def locked(output: Path, team: Team) -> Iterator[None]:
    """Lock the dataset's folder for this run; its first process holds the lock for all of them.

    Raises:
        ConfigError: another run is at work in this dataset; names its process.
    """
    folder = output / ".preprocess"
    if team.rank > 0:
        team.wait()
        yield
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pid_file, lock = folder / "pid", acquired(output)
    try:
        shutil.rmtree(folder / "under_way", ignore_errors=True)  # notes of a run that was killed
        (folder / "under_way").mkdir(exist_ok=True)
        pid_file.write_text(str(os.getpid()), encoding="utf-8")
        team.wait()
        yield
    finally:
        pid_file.unlink(missing_ok=True)
        lock.release()


def acquired(output: Path) -> FileLock:
    """Return the acquired lock of a dataset's folder. Raises ConfigError if another run has it."""
    lock, pid_file = FileLock(output / ".preprocess" / "lock", timeout=0), output / ".preprocess" / "pid"
    try:
        lock.acquire()
        return lock
    except Timeout:
        why = refusal_to_lock(Path(lock.lock_file))
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        why = error
    pid = pid_file.read_text(encoding="utf-8", errors="replace") if pid_file.exists() else "unknown"
    if why is None or (pid.isdigit() and is_alive(int(pid))):
        raise ConfigError(f"another preprocess (pid {pid}) is writing {output}: wait for it, or end it")
    say_once(output, "cannot lock", "only the pid of a run keeps a second one out, and only on this machine", why)
    return lock


def check_free(output: Path) -> None:
    """Raise ConfigError if a run is at work in this dataset."""
    acquired(output).release()

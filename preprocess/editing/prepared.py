"""Read a prepared dataset for display, with its problems, and edit its captions.

Reads metadata.jsonl and preprocess_report.json, writes metadata.jsonl whole under preprocess' own lock. No gradio.
"""

import contextlib
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from preprocess.captions.caption_text import NO_CAPTION
from preprocess.captions.token_count import caption_problems, least_tokens
from preprocess.editing.row_texts import text_of, with_text, with_word
from preprocess.jobs.state import jsonl, write_whole
from preprocess.output.card import dataset_card, models_in
from sdxl_lora.config.fields import flat_fields, from_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.errors import ConfigError, DataError, DiskError
from sdxl_lora.io.text_files import read_jsonl

SECONDS_TO_WAIT = 3.0  # long enough for another tab's save, but not for a preparation


class ChangedElsewhere(ConfigError):
    """A caption differs from the one that the person saw."""


@dataclasses.dataclass(frozen=True)
class DatasetImage:
    """One row of the dataset.

    `at_least`: `tokens` is a lower bound. `facts`: the report's row, {} without one. `place`: index among the rows of
    this file, each of which has its own caption. `mask`: a file.
    """

    file_name: str
    text: str
    source: str
    tokens: int
    at_least: bool
    problems: list[str]
    facts: dict
    place: int = 0
    mask: str = ""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset as the page shows it.

    Attributes:
        images: those with problems first, else in the dataset's order.
        left_out: (source, reason) of every file that preprocess did not use, images or not.
        settings: preprocess' own, {} without a report.
    """

    folder: Path
    images: list[DatasetImage]
    left_out: list[tuple[str, str]]
    settings: dict

    @property
    def trigger_word(self) -> str:
        return str(self.settings.get("trigger_word") or "")

    def config(self, **changes) -> PreprocessConfig:
        """Return the settings that prepared the dataset, with `changes`.

        Raises:
            ConfigError: there is no report, or its settings cannot be read.
        """
        if not self.settings:
            raise ConfigError(f"{self.folder} has no preprocess_report.json: prepare it again")
        known = {name: value for name, value in self.settings.items() if name in flat_fields(PreprocessConfig)}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        try:
            return from_flat(PreprocessConfig, {**known, "output_dir": str(self.folder), **changes})
        except TypeError as error:
            raise ConfigError(f"{self.folder}/preprocess_report.json: settings cannot be read ({error})") from None


def read_dataset(folder: Path) -> Dataset:
    """Read a prepared dataset.

    Raises:
        ConfigError: the folder holds no metadata.jsonl.
        DataError: the file cannot be read, or a line of it is no JSON object.
    """
    if not (folder / "metadata.jsonl").is_file():
        raise ConfigError(f"{folder} holds no metadata.jsonl")
    rows = rows_of(folder)
    report = read_report(folder)
    facts = {str(row.get("file_name")): row for row in objects(report, "rows") if has_facts(row)}
    settings = report["settings"] if isinstance(report.get("settings"), dict) else {}
    trigger_word = str(settings.get("trigger_word") or "")
    warnings: dict[str, list[str]] = {}
    typed = bool(settings.get("fallback_caption")) and not models_in(settings)
    for warning in objects(report, "warnings"):
        if typed and warning.get("message") == NO_CAPTION:
            continue  # the person asked for the fallback
        warnings.setdefault(str(warning.get("source")), []).append(str(warning.get("message")))
    seen: Counter[str] = Counter()
    images = []
    for row in rows:
        of_file = facts.get(row["file_name"], {})
        images.append(image_of(row, of_file, warnings, trigger_word, seen[row["file_name"]]))
        seen[row["file_name"]] += 1
    images.sort(key=lambda image: not image.problems)
    left_out = [
        (str(entry.get("source")), str(entry.get("reason")))
        for key in ("left_out", "other_files")
        for entry in objects(report, key)
    ]
    return Dataset(folder, images, left_out, settings)


def objects(report: dict, name: str) -> list[dict]:
    """Return the objects in a list of the report, which a person may have edited."""
    entries = report.get(name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def has_facts(row: dict) -> bool:
    """Return whether a row of the report has all facts that a card shows."""
    pairs: list[Any] = [row.get(name) for name in ("original_size", "bucket", "crop_top_left")]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return False
    numbers = [row.get("cut_off"), row.get("tokens"), *(number for pair in pairs for number in pair)]
    are_numbers = all(isinstance(number, int | float) for number in numbers)
    return are_numbers and isinstance(row.get("text"), str) and min(row["original_size"]) > 0


def image_of(row: dict, facts: dict, warnings: dict[str, list[str]], trigger_word: str, place: int) -> DatasetImage:
    """Return a row for display; the report's tokens and problems count only while the text is the one it saw."""
    text, source = text_of(row), str(row.get("source", row["file_name"]))
    trigger_word = "" if row.get("is_class_image") else trigger_word
    tokens, said = caption_problems(text, trigger_word, least_tokens)
    name, mask = row["file_name"], str(row.get("mask_file_name") or "")
    if facts and facts["text"] == text:
        return DatasetImage(name, text, source, facts["tokens"], False, warnings.get(source, []), facts, place, mask)
    _, of_old = caption_problems(facts.get("text", text), trigger_word, least_tokens)
    old = {*of_old, NO_CAPTION} if text else of_old
    others = [problem for problem in warnings.get(source, []) if problem not in old and "tokens" not in problem]
    return DatasetImage(name, text, source, tokens, True, [*others, *said], facts, place, mask)


def own_file(folder: Path, name: str) -> Path | None:
    """Return the path of a file in the folder; None if the name, which may be anyone's, leads out of it."""
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError):  # the name is too long or contains a NUL
        return None


def rows_of(folder: Path) -> list[dict]:
    """Return the rows of images, without lines about anything else.

    Raises:
        DataError: a line is no JSON object, or the file cannot be read.
    """
    return [row for row in all_rows(folder) if isinstance(row.get("file_name"), str)]


def all_rows(folder: Path) -> list[dict]:
    try:
        return read_jsonl(folder / "metadata.jsonl")
    except OSError as error:
        raise DataError(f"cannot read {folder / 'metadata.jsonl'}: {error.strerror}") from None


def read_report(folder: Path) -> dict:
    """Return the content of preprocess_report.json; {} if there is none or it is damaged."""
    try:
        report = json.loads((folder / "preprocess_report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def left_out_of(folder: Path, since: float) -> tuple[int, int]:
    """Return the numbers of images left out and found by a preparation; (0, 0) without a report since then."""
    path = folder / "preprocess_report.json"
    try:
        changed = path.stat().st_mtime
    except OSError:
        return 0, 0
    return left_out_at(path, changed) if changed >= since else (0, 0)


@lru_cache(maxsize=16)
def left_out_at(path: Path, changed: float) -> tuple[int, int]:
    counts = read_report(path.parent).get("counts")
    numbers: list[Any] = [counts.get(name) for name in ("left_out", "found")] if isinstance(counts, dict) else []
    return (numbers[0], numbers[1]) if numbers and all(isinstance(number, int) for number in numbers) else (0, 0)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of the dataset.

    Raises:
        ConfigError: preprocess is at work in it.
        DiskError: the lock cannot be written.
    """
    try:
        (folder / ".preprocess").mkdir(exist_ok=True)
        lock = FileLock(folder / ".preprocess" / "lock")
        lock.acquire(timeout=SECONDS_TO_WAIT)
    except Timeout:
        raise ConfigError(f"{folder.name} is being prepared: wait until it is done") from None
    except OSError as error:
        raise DiskError(f"cannot write into {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def changed_rows(folder: Path, change: Callable[[dict], dict]) -> int:
    """Apply `change` to every image's row and return the number changed; the caller holds the dataset.

    Other lines stay as they are.
    """
    rows = all_rows(folder)
    new = [change(row) if isinstance(row.get("file_name"), str) else row for row in rows]
    changed = sum(row != other for row, other in zip(rows, new, strict=True))
    if changed:
        write_whole(folder / "metadata.jsonl", jsonl(new))
    return changed


def save_text(folder: Path, file_name: str, shown: str, text: str, place: int = 0, others: Sequence[str] = ()) -> bool:
    """Set the caption of one row of an image; return whether it changed.

    Args:
        shown: the caption that the person saw.
        place: index among the rows of this file.
        others: further captions of the row.
    Raises:
        ChangedElsewhere: the caption differs from the one that was seen.
        ConfigError: the row is gone.
    """
    text = " ".join(text.split())
    with held(folder):  # read and write under one lock: another tab may be saving
        now = [text_of(row) for row in rows_of(folder) if row["file_name"] == file_name]
        if not now:
            raise ConfigError(f"{file_name} is no longer in the dataset: load it again")
        if now[min(place, len(now) - 1)] not in (shown, text):
            if now.count(shown) != 1:
                now_there = now[min(place, len(now) - 1)]
                raise ChangedElsewhere(f"the caption of {file_name} was changed elsewhere, to {now_there!r}.")
            place = now.index(shown)  # rows before it were added or removed
        places = itertools.count()
        place = min(place, len(now) - 1)

        def of_this_row(row: dict) -> dict:
            return with_text(row, text, others) if row["file_name"] == file_name and next(places) == place else row

        return changed_rows(folder, of_this_row) > 0


def add_trigger_word(folder: Path, trigger_word: str) -> int:
    """Add the trigger word to every caption that lacks it and to the card; return the number of changed captions.

    Raises:
        ConfigError: the word is empty.
    """
    trigger_word = trigger_word.strip()
    if not trigger_word:
        raise ConfigError("trigger_word is empty, it must be some text")

    with held(folder):
        changed = changed_rows(folder, partial(with_word, trigger_word=trigger_word))
        report = read_report(folder)
        settings = report.get("settings")
        write_whole(folder / "README.md", dataset_card(rows_of(folder), trigger_word, folder.name, models_in(settings)))
        if isinstance(settings, dict):
            settings["trigger_word"] = trigger_word
            write_whole(folder / "preprocess_report.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    return changed

"""A prepared dataset as a person looks at it: pictures with crop, size, caption and problems; captions edited.

Reads metadata.jsonl and preprocess_report.json, writes metadata.jsonl whole under preprocess' own lock. No gradio.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from preprocess.captions.caption_text import training_text
from preprocess.captions.token_count import caption_problems, least_tokens
from preprocess.jobs.state import jsonl, write_whole
from preprocess.output.card import dataset_card
from sdxl_lora.config.fields import from_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.io.text_files import read_jsonl
from webui.fields import fields_of


@dataclasses.dataclass(frozen=True)
class Picture:
    """One row. `at_least` says that `tokens` is a lower bound; `facts` is the report's row, {} without one."""

    file_name: str
    text: str
    source: str
    tokens: int
    at_least: bool
    problems: list[str]
    facts: dict


@dataclasses.dataclass(frozen=True)
class Dataset:
    """
    Attributes:
        pictures: those with problems first, else in the dataset's order.
        left_out: (source, reason) of what preprocess did not take, pictures or not.
        settings: preprocess' own, {} where its report is not there.
    """

    folder: Path
    pictures: list[Picture]
    left_out: list[tuple[str, str]]
    settings: dict

    @property
    def trigger_word(self) -> str:
        return self.settings.get("trigger_word") or ""

    def config(self, **changes) -> PreprocessConfig:
        """What it was prepared with.

        Raises:
            ConfigError: its report does not say.
        """
        if not self.settings:
            raise ConfigError(f"{self.folder} has no preprocess_report.json: prepare it once more")
        known = {name: value for name, value in self.settings.items() if name in fields_of(PreprocessConfig)}
        known["background"] = tuple(known.get("background", (255, 255, 255)))
        return from_flat(PreprocessConfig, {**known, "output_dir": str(self.folder), **changes})


def read_dataset(folder: Path) -> Dataset:
    """
    Raises:
        ConfigError: the folder holds no metadata.jsonl, or no JSON there.
    """
    if not (folder / "metadata.jsonl").is_file():
        raise ConfigError(f"{folder} holds no metadata.jsonl")
    rows = rows_of(folder)
    report = read_report(folder)
    facts = {row["file_name"]: row for row in report.get("rows", [])}
    settings = report.get("settings", {})
    warnings: dict[str, list[str]] = {}
    for warning in report.get("warnings", []):
        warnings.setdefault(warning["source"], []).append(warning["message"])
    pictures = [
        picture_of(row, facts.get(row["file_name"], {}), warnings, settings.get("trigger_word") or "") for row in rows
    ]
    pictures.sort(key=lambda picture: not picture.problems)
    left_out = [(e["source"], e["reason"]) for key in ("left_out", "other_files") for e in report.get(key, [])]
    return Dataset(folder, pictures, left_out, settings)


def picture_of(row: dict, facts: dict, warnings: dict[str, list[str]], trigger_word: str) -> Picture:
    """What the report says of the text holds while the text is the one that it saw; of another one we judge anew."""
    text, source = str(row.get("text", "")), str(row.get("source", row["file_name"]))
    trigger_word = "" if row.get("is_class_image") else trigger_word
    tokens, said = caption_problems(text, trigger_word, least_tokens)
    if facts and facts["text"] == text:
        return Picture(row["file_name"], text, source, facts["tokens"], False, warnings.get(source, []), facts)
    _, of_old = caption_problems(facts.get("text", text), trigger_word, least_tokens)
    others = [problem for problem in warnings.get(source, []) if problem not in of_old and "tokens" not in problem]
    return Picture(row["file_name"], text, source, tokens, True, [*others, *said], facts)


def own_file(folder: Path, name: str) -> Path | None:
    """The file of this name in the folder; None where the name, which anyone may have written, leads out of it."""
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def rows_of(folder: Path) -> list[dict]:
    rows = read_jsonl(folder / "metadata.jsonl")
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("file_name"), str)]


def read_report(folder: Path) -> dict:
    try:
        return json.loads((folder / "preprocess_report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The dataset for us alone.

    Raises:
        ConfigError: preprocess is at work in it.
    """
    (folder / ".preprocess").mkdir(exist_ok=True)
    lock = FileLock(folder / ".preprocess" / "lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        raise ConfigError(f"{folder.name} is being prepared: wait until that is done") from None
    try:
        yield
    finally:
        lock.release()


def change_texts(folder: Path, change: Callable[[dict], str]) -> int:
    """Gives every row the text that `change` makes of it; returns how many that changed."""
    with held(folder):
        rows = rows_of(folder)
        texts = [change(row) for row in rows]
        changed = sum(row.get("text") != text for row, text in zip(rows, texts, strict=True))
        if changed:
            new = [{**row, "text": text} for row, text in zip(rows, texts, strict=True)]
            write_whole(folder / "metadata.jsonl", jsonl(new))
        return changed


def save_text(folder: Path, file_name: str, shown: str, text: str) -> bool:
    """Gives one picture another caption; returns whether it changed.

    Args:
        shown: the caption that the person saw.
    Raises:
        ConfigError: the picture is gone, or its caption is no longer the one that was seen.
    """
    text = " ".join(text.split())
    now = {row["file_name"]: row.get("text", "") for row in rows_of(folder)}
    if file_name not in now:
        raise ConfigError(f"{file_name} is no longer in the dataset: load it again")
    if now[file_name] not in (shown, text):
        raise ConfigError(f"the caption of {file_name} was changed elsewhere: load the dataset again")
    return change_texts(folder, lambda row: text if row["file_name"] == file_name else row["text"]) > 0


def add_trigger_word(folder: Path, trigger_word: str) -> int:
    """Puts the word in front of every caption that lacks it, and into the card; returns how many captions changed.

    Raises:
        ConfigError: no word.
    """
    trigger_word = trigger_word.strip()
    if not trigger_word:
        raise ConfigError("trigger_word is empty, it must be some text")

    def with_word(row: dict) -> str:
        return row["text"] if row.get("is_class_image") else training_text(row["text"], trigger_word)

    changed = change_texts(folder, with_word)
    report = read_report(folder)
    caption_model = report.get("settings", {}).get("caption_model", "none")
    write_whole(folder / "README.md", dataset_card(rows_of(folder), trigger_word, folder.name, caption_model))
    if report:
        report["settings"]["trigger_word"] = trigger_word
        write_whole(folder / "preprocess_report.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    return changed

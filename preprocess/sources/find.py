"""The pictures of a folder and the captions that people wrote for them. Opens no picture, writes nothing."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sdxl_lora.data.images import SUFFIXES, UNSUPPORTED_SUFFIXES
from sdxl_lora.errors import ConfigError, DataError

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"
REPEAT_FOLDER = re.compile(r"(\d+)_(.+)")  # kohya's "10_sks cat": ten times an epoch, "sks cat" where no caption is
MASKS = "masks"


@dataclasses.dataclass(slots=True)
class Source:
    """One picture file."""

    path: Path
    name: str  # path relative to the input folder, with / on every system
    caption: str | None = None  # written by a person; None where there is none
    caption_from: str | None = None  # name of the file that says so
    repeats: int = 1
    class_words: str = ""  # of a kohya folder
    mask: Path | None = None
    is_class_image: bool = False


@dataclasses.dataclass
class Found:
    sources: list[Source] = dataclasses.field(default_factory=list)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> reason
    other_files: list[str] = dataclasses.field(default_factory=list)  # neither pictures nor captions
    warnings: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def warn(self, name: str, message: str) -> None:
        self.warnings.setdefault(name, []).append(message)


def find_pictures(folder: Path, masks: bool = False) -> Found:
    """Every picture below `folder`, sorted by name, each with its caption file; with `masks` each with masks/<stem>.*

    Raises:
        ConfigError: there is no such folder.
        DataError: captions that cannot be read or belong to two pictures, all of them at once.
    """
    if not folder.is_dir():
        raise ConfigError(f"input_dir {folder} is not a folder")
    found, metadata = Found(), []
    problems: list[str] = []

    def unreadable(error: OSError) -> None:
        found.left_out[shown(Path(error.filename), folder) + "/"] = f"cannot be read ({error.strerror})"

    for directory, folders, files in walk(folder, unreadable):
        for name in list(folders):
            relative = shown(directory / name, folder)
            if name.startswith(".") or name == "__MACOSX":
                found.other_files.append(relative + "/")  # .git, .cache
                folders.remove(name)
            elif name.lower().endswith(SUFFIXES):
                found.left_out[relative + "/"] = "a directory, not a file: rename it to use the pictures inside"
                folders.remove(name)
        if masks and MASKS in folders:
            folders.remove(MASKS)
        add_directory(found, problems, folder, directory, files, directory / MASKS if masks else None)
        metadata += [directory / METADATA] if METADATA in files else []
    for path in metadata:
        problems += read_metadata_captions(found, path, folder)
    if problems:
        raise DataError("\n".join(problems))
    return found


def walk(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk in a fixed order, through links to folders too, and never twice into one."""
    seen = set()
    for directory, folders, files in os.walk(folder, onerror=on_error, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield Path(directory), folders, sorted(files)


def shown(path: Path, folder: Path) -> str:
    """The path relative to the folder, with / and as text that JSON can hold: bytes that are no UTF-8 as \\xe9."""
    relative = path.relative_to(folder).as_posix()
    return relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def add_directory(
    found: Found, problems: list[str], folder: Path, directory: Path, files: list[str], mask_folder: Path | None
) -> None:
    masks = {path.stem: path for path in sorted(mask_folder.glob("*"))} if mask_folder and mask_folder.is_dir() else {}
    repeats, class_words = repeats_of(directory, folder)
    pictures: dict[str, list[Source]] = {}  # by stem
    captions: dict[str, list[Path]] = {}
    for file in files:
        path = directory / file
        name, stem, suffix = shown(path, folder), path.stem, path.suffix.lower()
        if file.startswith(".") and suffix in SUFFIXES:
            found.left_out[name] = "a hidden file"
        elif suffix in SUFFIXES and not repeats:
            found.left_out[name] = f"its folder {directory.name} asks for 0 repeats"
        elif suffix in SUFFIXES:
            source = Source(path, name, repeats=repeats, class_words=class_words, mask=masks.get(stem))
            for key in (stem, file):
                pictures.setdefault(key, []).append(source)
            found.sources.append(source)
        elif suffix in UNSUPPORTED_SUFFIXES:
            found.left_out[name] = f"unsupported format {suffix[1:].upper()}; use {', '.join(SUFFIXES)}"
        elif suffix in CAPTION_SUFFIXES:
            captions.setdefault(stem, []).append(path)  # of a.txt "a", of a.png.txt "a.png"
        elif file != METADATA:
            found.other_files.append(name)
    for stem, paths in captions.items():
        problems += give_caption(found, folder, paths, pictures.get(stem, []))


def repeats_of(directory: Path, folder: Path) -> tuple[int, str]:
    match = REPEAT_FOLDER.fullmatch(directory.name) if directory != folder else None
    return (int(match[1]), match[2].strip()) if match else (1, "")


def give_caption(found: Found, folder: Path, paths: list[Path], pictures: list[Source]) -> list[str]:
    """Puts the caption of one stem on its picture; returns what is wrong with it."""
    path = max(paths, key=lambda candidate: candidate.suffix.lower() == ".txt")
    name = shown(path, folder)
    if not pictures:
        found.other_files += [shown(p, folder) for p in paths]
        return []
    if len(pictures) > 1:
        both = " and ".join(source.name for source in pictures)
        return [f"{both} both map to {name}: rename one of them, and give each its caption"]
    for other in paths:
        if other != path:
            found.warn(pictures[0].name, f"{other.name} is not used: {path.name} is there")
    try:
        pictures[0].caption = read_caption(path)
    except DataError as error:
        return [str(error)]
    pictures[0].caption_from = name
    if not pictures[0].caption:
        found.warn(pictures[0].name, f"{path.name} is empty")
    return []


def read_caption(path: Path) -> str:
    """A caption file's text as one line, with or without a byte-order mark.

    Raises:
        DataError: not UTF-8 (which byte, where), or unreadable.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path} is not UTF-8: byte 0x{byte:02x} at position {error.start}; save it again as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    return " ".join(text.replace("\0", " ").split())


def read_metadata_captions(found: Found, path: Path, folder: Path) -> list[str]:
    """Puts the texts of a metadata.jsonl on pictures without a caption file of their own; returns what is wrong.

    Its file names are relative to it, as datasets has it.
    """
    by_path = {source.path: source for source in found.sources}
    name = shown(path, folder)
    try:
        rows = read_jsonl(path)
    except DataError as error:
        return [str(error)]
    for row in rows:
        source = by_path.get(path.parent / str(row.get("file_name")))
        if source is None:
            found.warn(name, f"names {row.get('file_name')!r}, which is not there")
        elif isinstance(row.get("text"), str) and source.caption is None:
            source.caption, source.caption_from = " ".join(row["text"].split()), name
    return []


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a JSON-lines file.

    Raises:
        DataError: a line that is no JSON object, with its number and column.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}:{error.colno}: {error.msg}; every line must be a JSON object") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: every line must be a JSON object, this one is {line[:40]!r}")
        rows.append(row)
    return rows

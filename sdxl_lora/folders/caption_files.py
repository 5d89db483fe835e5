"""Caption files beside pictures: which file belongs to which picture, and the text in it. Opens no picture."""

import json
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sdxl_lora.errors import DataError
from sdxl_lora.io.text_files import read_text

CAPTION_SUFFIXES = (".txt", ".caption", ".tags", ".json")  # of several for one picture, the first of these is used
TEXT_KEYS = ("text", "caption", "prompt", "description", "tags")


def why_no_file(path: Path) -> str | None:
    """Why there is nothing to read at a path; None for a regular file. Reading a pipe or a device might never end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "dangling link" if path.is_symlink() else "no such file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    return "a directory, not a file" if stat.S_ISDIR(mode) else "a device or a pipe, not a file"


def alike(name: str) -> str:
    """Return what names have in common that people and systems take for one: case, the spelling of accents, blanks."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


class ByName:
    """Things by the names of files: by the whole name or by what is before its ending, exactly, else as alike."""

    def __init__(self, things: Iterable[Any], name_of: Callable[[Any], str]):
        self.levels: list[dict[str, list[Any]]] = [{}, {}, {}, {}]
        for thing in things:
            name = name_of(thing)
            stem = os.path.splitext(name)[0]
            for level, key in zip(self.levels, (name, stem, alike(name), alike(stem)), strict=True):
                level.setdefault(key, []).append(thing)

    def get(self, name: str) -> list[Any]:
        keys = (name, name, alike(name), alike(name))
        return next((level[key] for level, key in zip(self.levels, keys, strict=True) if key in level), [])


def images_of(file: str, images: ByName) -> list[Any]:
    """The pictures that a caption file of this name may belong to: a.txt, a.png.txt and a.caption.txt to a.png."""
    stem = os.path.splitext(file)[0]
    inner, suffix = os.path.splitext(stem)
    return images.get(stem) or (images.get(inner) if suffix.lower() in CAPTION_SUFFIXES else [])


def read_caption(path: Path) -> str | None:
    """The caption in a caption file, without blanks around it; None in a .json that holds none.

    Raises:
        DataError: it cannot be read.
    """
    text = read_text(path)
    if path.suffix.lower() != ".json":
        return text.strip()
    try:
        return caption_in(json.loads(text), with_tags=True)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): mend it or take it away") from None


def caption_in(value: Any, with_tags: bool = False) -> str | None:
    """The caption in a JSON value: a text, a list of tags, or an object with one of TEXT_KEYS; None for no caption.

    Args:
        with_tags: put an object's tags behind its caption, as kohya's trainer does.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return ", ".join(value) if value and all(isinstance(item, str) for item in value) else None
    if not isinstance(value, dict):
        return None
    values = {str(key).lower(): item for key, item in value.items()}
    found = {key: text for key in TEXT_KEYS if (text := caption_in(values.get(key))) is not None}
    if not found:
        return None
    first, tags = next(iter(found.values())), found.get("tags")
    return f"{first}, {tags}" if with_tags and tags and first and first is not tags else first

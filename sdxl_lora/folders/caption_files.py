"""Caption files beside images: matching them to images and reading their text. Opens no image."""

import json
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sdxl_lora.errors import DataError
from sdxl_lora.io.text_files import read_text

CAPTION_SUFFIXES = (".txt", ".caption", ".tags", ".json")  # in order of preference for one image
TEXT_KEYS = ("text", "caption", "prompt", "description", "tags")


def why_no_file(path: Path) -> str | None:
    """Return the reason why a path is unreadable; None for a regular file. Reading a pipe or device might never end."""
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
    """Return the form that names share if people and systems confuse them: ignores case, accent encoding and blanks."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


class ByName:
    """Lookup of things by file name: the whole name or its stem, exactly or else as `alike` compares them."""

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
    """Return the images that a caption file may belong to by name: a.txt, a.png.txt and a.caption.txt to a.png."""
    stem = os.path.splitext(file)[0]
    inner, suffix = os.path.splitext(stem)
    return images.get(stem) or (images.get(inner) if suffix.lower() in CAPTION_SUFFIXES else [])


def read_caption(path: Path) -> str | None:
    """Return the caption in a caption file, stripped; None for a .json without one.

    Raises:
        DataError: the file cannot be read.
    """
    text = read_text(path)
    if path.suffix.lower() != ".json":
        return text.strip()
    try:
        return caption_in(json.loads(text), with_tags=True)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): fix it or remove it") from None


def caption_in(value: Any, with_tags: bool = False) -> str | None:
    """Return the caption in a JSON value: a text, a list of tags, or an object with one of TEXT_KEYS; None without one.

    Args:
        with_tags: append an object's tags to its caption, as kohya's trainer does.
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

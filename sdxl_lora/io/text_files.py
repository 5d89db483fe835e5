"""Read text files written by people, with clear errors for files that are not text."""

import json
import re
from pathlib import Path
from typing import Any

from sdxl_lora.config.names import printable
from sdxl_lora.errors import DataError
from sdxl_lora.io.regular_files import read_regular

MOST_CAPTION_BYTES, MOST_TABLE_BYTES = 10**6, 2**31
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # and those of UTF-32


def read_text(path: Path, most_bytes: int = MOST_CAPTION_BYTES) -> str:
    """Return a file's text, without a byte-order mark.

    Raises:
        DataError: the file is not regular, unreadable, too large, not UTF-8 (names the byte and its position), or has a
            NUL.
    """
    data = read_regular(path, most_bytes)
    if data.startswith(UTF16_MARKS):
        kind = "UTF-32" if data[2:4] == b"\0\0" or data[:2] == b"\0\0" else "UTF-16"
        raise DataError(f"{printable(path)} is {kind}, not UTF-8: save it again as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{printable(path)} is not UTF-8: byte 0x{byte:02x} at position {error.start}; save it again as UTF-8"
        ) from None
    if "\0" in text:
        where = f"NUL at position {data.index(0)}, as in UTF-16"
        raise DataError(f"{printable(path)} is not UTF-8 text: {where}; save it again as UTF-8")
    return text


def read_jsonl(path: Path) -> list[dict]:
    """Return the objects of a JSON-lines file.

    Raises:
        DataError: as read_text; or a line is not a JSON object or holds invalid text (names the line's number).
    """
    rows = []
    for number, line in enumerate(read_text(path, MOST_TABLE_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{printable(path)}:{number}"
        try:
            row = json.loads(line)
            problem = text_problem(row) if "\\u" in line else None
        except json.JSONDecodeError as error:
            raise DataError(f"{where}:{error.colno}: {error.msg}; every line must be a JSON object") from None
        except (ValueError, RecursionError) as error:  # e.g. a number of 5000 digits, or 10000 brackets
            raise DataError(f"{where}: cannot be read ({error}); every line must be a JSON object") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: every line must be a JSON object, this one is {line[:40]!r}")
        if problem:
            raise DataError(f"{where}: {problem}")
        rows.append(row)
    return rows


def text_problem(value: Any) -> str | None:
    """Return the reason why text in a JSON value cannot be written as UTF-8 or be a caption; None if it can."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next(filter(None, map(text_problem, value)), None)
    if isinstance(value, str) and (half := LONE_SURROGATE.search(value)):
        code = f"\\u{ord(half[0]):04x}"
        return f"{code} is half a character, such as of an emoji that was cut: write the whole character, or none"
    if isinstance(value, str) and "\0" in value:
        return f"a NUL at position {value.index(chr(0))} of {value[:40]!r}: take it out"
    return None

"""Files with many captions: metadata.jsonl and the like, tables of other tools, kohya's meta_cap.json.

Reads a table line by line; finder.py matches lines to images. Opens no image.
"""

import csv
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdxl_lora.errors import DataError
from sdxl_lora.folders.caption_files import TEXT_KEYS, caption_in
from sdxl_lora.io.text_files import MOST_TABLE_BYTES, read_jsonl, read_text

OF_DATASETS = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # read by the datasets library
METADATA = (*OF_DATASETS, "metadata.tsv", "metadata.json")
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")
FILE_KEYS = ("file_name", "filename", "file", "image_file", "image_path", "image_name", "image", "path", "img", "name")
CAPTIONS = "captions"
SIZE_KEYS = ("original_size", "crop_top_left")
FILE_NAME = "file_name"  # also the suffix of columns with further files, as in the datasets library


class NoTable(ValueError):
    """A file without captions by file name; the message says why."""


@dataclass(slots=True)
class Line:
    """One line of a table.

    file: the image's name as written in the table.
    text: its caption, or None.
    values: all columns of the line.
    """

    file: str
    text: str | None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def captions(self) -> tuple[str, ...]:
        """Several captions of the image, from a list of texts in the column CAPTIONS; () without such a list."""
        several = self.values.get(CAPTIONS)
        is_texts = isinstance(several, list) and all(isinstance(one, str) for one in several)
        return tuple(several or ()) if is_texts else ()


@dataclass
class Table:
    """The lines of one file. Names in it are relative to its folder."""

    path: Path
    lines: list[Line]

    @property
    def is_metadata(self) -> bool:
        return is_metadata(self.path.name)

    @property
    def is_prepared(self) -> bool:
        """Return whether the table is of a prepared dataset, whose lines record how their images were cropped."""
        return self.is_metadata and any(SIZE_KEYS[0] in line.values for line in self.lines)

    def masks(self) -> dict[Path, Path]:
        """Return the further files of the lines, such as masks in mask_file_name, each with its image."""
        return {path: self.path_of(line.file) for line in self.lines for path in self.files_of(line).values()}

    def files_of(self, line: Line) -> dict[str, Path]:
        """Return the files named in a line's further file columns, by the column's name in datasets.

        Raises:
            DataError: a name leads out of the table's folder, through which a dataset could read any file.
        """
        files = {key: value for key, value in line.values.items() if is_file_column(key)}
        for key, file in files.items():
            if isinstance(file, str) and (os.path.isabs(file) or os.path.normpath(file).startswith("..")):
                raise DataError(f"{self.path}: {key} is {file!r}, which leads out of its folder")
        return {column_of(key): self.path_of(file) for key, file in files.items() if isinstance(file, str) and file}

    def path_of(self, file: str) -> Path:
        return self.path.parent / os.path.normpath(file.replace("\\", "/"))


def is_file_column(key: str) -> bool:
    return key.endswith(f"_{FILE_NAME}")


def column_of(key: str) -> str:
    """Return the image column that datasets makes of a column of file names."""
    return key.removesuffix(f"_{FILE_NAME}")


def is_metadata(file: str) -> bool:
    return file in METADATA


def may_be_table(file: str) -> bool:
    return is_metadata(file) or file.lower().endswith(SUFFIXES)


def read_table(path: Path) -> Table:
    """Read a table of captions.

    Raises:
        NoTable: it holds no captions by file name.
        DataError: it cannot be read or is damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = read_parquet(path)
    elif suffix in (".csv", ".tsv"):
        rows = read_csv(path)
    elif suffix == ".json":
        return Table(path, read_json(path))
    else:
        rows = read_jsonl(path)
    keys = {str(key).lower(): key for row in rows for key in row}
    file_key = FILE_NAME if FILE_NAME in keys.values() else next((keys[key] for key in FILE_KEYS if key in keys), None)
    if file_key is None:
        raise NoTable(f"has no column file_name, only {', '.join(map(str, keys.values())) or 'none at all'}")
    return Table(path, [Line(str(row.get(file_key) or ""), text_of(row, path), row) for row in rows])


def text_of(row: dict, path: Path) -> str | None:
    """Return the caption of a line; a text is returned as it is."""
    values = {str(key).lower(): value for key, value in row.items()}
    key = next((key for key in TEXT_KEYS if values.get(key) is not None), None)
    if key is None:
        return None
    if isinstance(values[key], str):
        return values[key]
    text = caption_in(values[key])
    if text is None and is_metadata(path.name):
        raise DataError(f"{path}: the caption of {row.get(FILE_NAME)} must be text, it is {values[key]!r}")
    return text


def read_json(path: Path) -> list[Line]:
    """Return the lines of a list of objects, or of an object from names to captions such as kohya's meta_cap.json."""
    try:
        content = json.loads(read_text(path, MOST_TABLE_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise NoTable(f"is not JSON ({error})") from None
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        files = [next((str(row[key]) for key in FILE_KEYS if isinstance(row.get(key), str)), None) for row in content]
        if all(files):
            return [Line(file, text_of(row, path), row) for file, row in zip(files, content, strict=True) if file]
    if isinstance(content, dict):
        lines = [Line(str(name), caption_in(value, with_tags=True)) for name, value in content.items()]
        if any(line.text is not None for line in lines):
            return lines
    raise NoTable("holds no captions by file name")


def read_csv(path: Path) -> list[dict]:
    """Return the rows of a table with a header; values are parsed as JSON, except captions and file names."""
    text = read_text(path, MOST_TABLE_BYTES)
    separator = max(",;\t|", key=text.split("\n", 1)[0].count)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is a damaged table: {error}") from None
    if any(None in row or None in row.values() for row in rows):
        number = next(number for number, row in enumerate(rows, start=2) if None in row or None in row.values())
        raise DataError(f"{path}: row {number} does not have as many columns as the header; put texts with "
                        f'{separator!r} in them in "quotes"')  # fmt: skip
    return [{key.strip(): csv_value(key.strip().lower(), value) for key, value in row.items()} for row in rows]


def csv_value(key: str, value: str) -> Any:
    if key in TEXT_KEYS or key in FILE_KEYS or key.endswith(FILE_NAME):
        return value
    if not value:
        return None
    try:
        return json.loads(value.lower() if value.lower() in ("true", "false") else value)
    except ValueError:
        return value


def read_parquet(path: Path) -> list[dict]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None

"""Open a folder on disk as a dataset: preprocess's output, captioned images, Parquet files, or save_to_disk.

Warns of files that are not used. Decodes no image.
"""

import glob
import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from sdxl_lora.errors import DataError
from sdxl_lora.folders.caption_tables import FILE_NAME, OF_DATASETS, Line, Table, column_of, is_file_column, is_metadata
from sdxl_lora.folders.finder import find_images
from sdxl_lora.folders.folder_names import why_passed_over
from sdxl_lora.folders.found import Found, Source, as_text
from sdxl_lora.images.decode import SUFFIXES

IMAGE, TEXT, REPEATS = "image", "text", "folder_repeats"
UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, pyarrow.ArrowException, datasets.exceptions.DatasetGenerationError,
)  # fmt: skip
MOST_NAMED = 20  # files that a warning names; it only counts the others
SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SPLIT = re.compile(rf"(?:.*[-_. ])?({'|'.join(SPLITS)})(?:[-_. ].*)?", re.IGNORECASE)


def open_folder(folder: Path) -> datasets.Dataset:
    """Open a folder of any supported kind.

    Raises:
        DataError: it holds nothing to train on or is unreadable.
    """
    if (folder / "dataset_dict.json").exists():
        return open_saved_splits(folder)
    if (folder / "dataset_info.json").exists():
        return datasets.load_from_disk(str(folder))
    is_described = any((folder / name).is_file() for name in OF_DATASETS)
    shards = [] if is_described else shards_in(folder)
    if shards:
        return open_shards(folder, shards)
    return captioned_images(folder)


def open_saved_splits(folder: Path) -> datasets.Dataset:
    """Open the training split of a saved DatasetDict."""
    splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    chosen = "train" if "train" in splits or len(splits) != 1 else splits[0]
    if chosen not in splits:
        raise DataError(f"{folder} has the splits {', '.join(splits)} but no train: give the folder of one of them")
    say(folder, "other splits, which are not used", [name for name in splits if name != chosen])
    return datasets.load_from_disk(str(folder / chosen))


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Return the files below a folder with this ending, sorted, without hidden folders and recycle bins."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not why_passed_over(name)]
        found += [Path(where, name) for name in files if name.lower().endswith(suffix) and not name.startswith(".")]
    return sorted(found, key=str)


def shards_in(folder: Path) -> list[Path]:
    """Return Parquet files that hold images, not only facts about images."""
    return [path for path in files_below(folder, ".parquet") if has_images(path)]


def has_images(path: Path) -> bool:
    """Return whether a Parquet file holds images; True for a damaged file, so that its reader reports it."""
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, ValueError):
        return True
    return any(name == IMAGE or is_binary(schema.field(name).type) for name in schema.names)


def is_binary(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_struct(kind):
        return any(is_binary(kind.field(number).type) for number in range(kind.num_fields))
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def open_shards(folder: Path, shards: list[Path]) -> datasets.Dataset:
    files = training_files(folder, shards)
    for path in files:
        try:
            pyarrow.parquet.read_schema(path)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is not a Parquet file, or is damaged ({error}): download it again or remove it"
            ) from None
    say_others(folder, shards, "beside Parquet files of images")
    return datasets.load_dataset("parquet", data_files={"train": literal(files)}, split="train")


def say_others(folder: Path, used: list[Path], beside: str) -> None:
    """Warn of the files in a folder that are not used, except for the card, which is read."""
    names = {str(path) for path in used} | {str(folder / "README.md")}
    others = [shown(path, folder) for path in files_below(folder, "") if str(path) not in names]
    say(folder, f"not used {beside}", others)


def training_files(folder: Path, shards: list[Path]) -> list[Path]:
    """Return all shards or, if some are named after training, those not named after another split."""
    split = {path: split_of(path.relative_to(folder)) for path in shards}
    if "train" not in split.values():
        return shards
    others = [path for path in shards if split[path] not in ("train", None)]
    say(folder, "not used, of splits other than train", [shown(path, folder) for path in others])
    return [path for path in shards if path not in others]


def split_of(path: Path) -> str | None:
    """Return the split in a file's name or its folders': data/train-00000-of-00002.parquet, test/0000.parquet."""
    for name in (path.stem, *(part for part in reversed(path.parts[:-1]))):
        if match := SPLIT.fullmatch(name):
            return SPLITS[match[1].lower()]
    return None


def literal(paths: Iterable[Path | str]) -> list[str]:
    """Return paths escaped for datasets, which takes brackets and stars in them as patterns."""
    return [glob.escape(os.path.abspath(path)) for path in paths]


def captioned_images(folder: Path) -> datasets.Dataset:
    """Return images with captions beside them or in metadata, those of metadata in its order, the others by name."""
    found = find_images(folder)
    leave_out_undecodable(found)
    files = {path: found.shown(path) for _, line, table in found.lines for path in table.files_of(line).values()}
    for name in ("README.md", *files.values()):  # the card is read for its trigger word, the others become columns
        found.other_files.pop(name, None)
    say_all(found)
    say_splits(found)
    if found.missing:
        raise DataError(f"{folder}: {listed(found.missing)}: there is no usable image of this name")
    if not found.sources:
        hint = ": --dataset_streaming reads its .tar files" if files_below(folder, ".tar") else ""
        raise DataError(f"no images ({', '.join(SUFFIXES)}) in {folder}{hint}")
    named = {source.name for source, *_ in found.lines}
    others = sorted((source for source in found.sources if source.name not in named), key=lambda source: source.path)
    rows = [row_of_line(*line) for line in found.lines] + [row_of(source) for source in others]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    if found.lines and TEXT not in found.lines[0][1].values and not any(columns[TEXT]):
        del columns[TEXT]  # captions are in another column: --caption_column
    if set(columns[REPEATS]) == {1}:
        del columns[REPEATS]
    dataset = datasets.Dataset.from_dict(columns)
    images = {IMAGE} | {column_of(key) for _, line, _ in found.lines for key in line.values if is_file_column(key)}
    for name in sorted(images):
        dataset = dataset.cast_column(name, datasets.Image())
    return dataset


def row_of(source: Source) -> dict[str, Any]:
    caption = source.class_words if source.caption is None else source.caption
    return {IMAGE: str(source.path), TEXT: caption, REPEATS: source.repeats}


def row_of_line(source: Source, line: Line, table: Table) -> dict[str, Any]:
    """Return a metadata line as datasets reads it: columns of file names become images."""
    row = row_of(source)
    if source.caption_from is None or is_metadata(Path(source.caption_from).name):
        row[TEXT] = line.text if line.text is not None or TEXT in line.values else row[TEXT]
    values = {key: value for key, value in line.values.items() if key != FILE_NAME and not is_file_column(key)}
    files: dict[str, str | None] = {column_of(key): None for key in line.values if is_file_column(key)}
    files |= {name: str(path) for name, path in table.files_of(line).items()}
    return {**row, **{key: value for key, value in values.items() if key not in row}, **files}


def leave_out_undecodable(found: Found) -> None:
    """Drop images whose names are not UTF-8, which no column can hold."""
    for source in found.sources:
        if as_text(str(source.path)) != str(source.path):
            found.left_out[source.name] = "its name or its folder's is not UTF-8: rename it"
    found.sources = [source for source in found.sources if source.name not in found.left_out]
    found.lines = [line for line in found.lines if line[0].name not in found.left_out]


def say_all(found: Found) -> None:
    """Warn of everything in the folder that is not used, or is used in an unexpected way."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in [*sorted(found.left_out.items()), *sorted(found.other_files.items())]:
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        say(found.folder, f"not used, {reason}", names)
    for name, note in sorted(found.notes.items()):
        say(found.folder, note, [name])
    by_message: dict[str, list[str]] = {}
    for name, messages in found.warnings.items():
        for message in messages:
            by_message.setdefault(message, []).append(name)
    for message, names in by_message.items():
        say(found.folder, message, names)


def say_splits(found: Found) -> None:
    """Warn if folders look like splits: datasets would read only one, but here all of them are used."""
    folders = {source.name.split("/")[0] for source in found.sources if "/" in source.name}
    if any(SPLITS.get(name.lower()) == "train" for name in folders):
        others = sorted(name for name in folders if SPLITS.get(name.lower()) not in ("train", None))
        say(found.folder, "used too, like all folders: give the one with train to leave the others out", others)


def say(folder: Path, what: str, names: list[str]) -> None:
    if names:
        warnings.warn(f"{folder}: {listed(names)}: {what}", stacklevel=2)


def listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def shown(path: Path, folder: Path) -> str:
    return as_text(path.relative_to(folder).as_posix())

"""Rows of a dataset as they are stored: encoded pictures and masks, which no decoder but ours ever opens."""

import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace

import datasets
from datasets.features.features import require_decoding
from PIL import Image

from sdxl_lora.data.open_folder import TEXT
from sdxl_lora.errors import DataError
from sdxl_lora.folders.caption_tables import CAPTIONS
from sdxl_lora.images.decode import decode_image, read_image, upright_rgb
from sdxl_lora.io.memo import file_stamp
from sdxl_lora.io.text_files import text_problem

MASK_COLUMN = "mask"
BLACK = (0, 0, 0)  # what is transparent in a mask does not count


def left_encoded(dataset: datasets.Dataset, columns: Collection[str]) -> datasets.Dataset:
    """The dataset with those of the columns that it has, and pictures among them as bytes.

    Raises:
        DataError: pictures or sounds inside of lists.
    """
    dataset = dataset.select_columns([name for name in dataset.column_names if name in columns])
    for name, feature in list(dataset.features.items()):
        if hasattr(feature, "decode"):
            dataset = dataset.cast_column(name, replace(feature, decode=False))
        elif require_decoding(feature):
            raise DataError(f"the column {name} holds lists of pictures or sounds, which cannot be used there")
    return dataset


def captions_in(row: dict, caption_column: str, per_line: bool, name: str) -> list[str]:
    """The captions of a row, one or more: its text, of several lines with `per_line`, or a list of texts.

    Args:
        caption_column: holds a text or a list; in place of TEXT the list in CAPTIONS counts, where there is one.
        name: of the image, for errors.
    Raises:
        DataError: there is something else.
    """
    several, value = row.get(CAPTIONS), row[caption_column]
    if caption_column == TEXT and isinstance(several, list) and several:
        value = several
    captions = value if isinstance(value, list) and value else [value]
    for caption in captions:
        if not isinstance(caption, str):
            raise DataError(f"the caption of {name} must be text, it is {value!r}")
        if problem := text_problem(caption):
            raise DataError(f"the caption of {name} has {problem}")
    return [line for caption in captions for line in lines_of(caption)] if per_line else captions


def lines_of(caption: str) -> list[str]:
    """The lines of a caption that hold something, without blanks around them; of an empty one "" alone."""
    return [line.strip() for line in caption.splitlines() if line.strip()] or [""]


def is_left_out(text: object, captions: Sequence[str], per_line: bool) -> bool:
    """Return whether a text, which a person may have edited, is none of the captions that count in its place."""
    return isinstance(text, str) and not {*(lines_of(text) if per_line else [text])} <= {*captions}


def image_bytes(image: dict) -> bytes:
    """The encoded picture in a row, or in the file that it names."""
    return read_image(image["path"]) if image["bytes"] is None else image["bytes"]


def facts_of_files(row: dict, columns: Sequence[str]) -> list:
    """Return that by which a change of the files that a row names is seen."""
    paths = [row[name]["path"] for name in columns if row[name] and row[name]["bytes"] is None]
    return [file_stamp(path) for path in paths if os.path.isfile(path)]


def with_encoded_masks(dataset: datasets.Dataset, masked: bool) -> datasets.Dataset:
    """The dataset with its column of masks left encoded, or without it."""
    there = MASK_COLUMN in dataset.column_names
    if masked and not there:
        raise DataError(
            f"masked_loss needs a dataset with a column {MASK_COLUMN}; its columns are "
            f"{', '.join(dataset.column_names)}. `python -m preprocess --masks alpha` (or folder) writes one."
        )
    if masked:
        return dataset.cast_column(MASK_COLUMN, datasets.Image(decode=False))
    if there:
        warnings.warn("the dataset has masks, which are not used: --masked_loss uses them", stacklevel=3)
        return dataset.remove_columns(MASK_COLUMN)
    return dataset


def mask_bytes(row: dict) -> bytes | None:
    """The encoded mask in a row; None where the picture has none."""
    return None if row[MASK_COLUMN] is None else image_bytes(row[MASK_COLUMN])


def mask_of(data: bytes | None, name: str, size: tuple[int, int]) -> Image.Image:
    """A picture's mask in mode L; white where it has none."""
    if data is None:
        return Image.new("L", size, 255)
    mask = upright_rgb(decode_image(data, f"the mask of {name}"), BLACK).convert("L")
    if mask.size != size:
        raise DataError(f"the mask of {name} has {mask.size} px, it must have {size} like the picture")
    return mask

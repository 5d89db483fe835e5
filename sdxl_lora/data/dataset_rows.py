"""Stored rows of a dataset: encoded images and masks, which only our decoder opens."""

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
BLACK = (0, 0, 0)  # transparent parts of a mask do not count


def left_encoded(dataset: datasets.Dataset, columns: Collection[str]) -> datasets.Dataset:
    """Return the dataset with those of the columns it has, images left as bytes.

    Raises:
        DataError: a column holds lists of images or sounds.
    """
    dataset = dataset.select_columns([name for name in dataset.column_names if name in columns])
    for name, feature in list(dataset.features.items()):
        if hasattr(feature, "decode"):
            dataset = dataset.cast_column(name, replace(feature, decode=False))
        elif require_decoding(feature):
            raise DataError(f"the column {name} holds lists of images or sounds, which cannot be used")
    return dataset


def captions_in(row: dict, caption_column: str, per_line: bool, name: str) -> list[str]:
    """Return the captions of a row, one or more: its text, split into lines if `per_line`, or a list of texts.

    Args:
        caption_column: holds a text or a list; if it is TEXT, a list in CAPTIONS takes precedence.
        name: the image's name, for errors.
    Raises:
        DataError: the column holds anything else.
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
    """Return the non-blank lines of a caption, stripped; [""] for an empty one."""
    return [line.strip() for line in caption.splitlines() if line.strip()] or [""]


def is_left_out(text: object, captions: Sequence[str], per_line: bool) -> bool:
    """Return whether a text, perhaps edited by hand, is missing from the captions that take precedence over it."""
    return isinstance(text, str) and not {*(lines_of(text) if per_line else [text])} <= {*captions}


def image_bytes(image: dict) -> bytes:
    """Return the encoded image in a row, or in the file that it names."""
    return read_image(image["path"]) if image["bytes"] is None else image["bytes"]


def facts_of_files(row: dict, columns: Sequence[str]) -> list:
    """Return the stamps that reveal changes of the files named in a row."""
    paths = [row[name]["path"] for name in columns if row[name] and row[name]["bytes"] is None]
    return [file_stamp(path) for path in paths if os.path.isfile(path)]


def with_encoded_masks(dataset: datasets.Dataset, masked: bool) -> datasets.Dataset:
    """Return the dataset with its mask column left encoded, or without it."""
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
    """Return the encoded mask in a row; None if the image has none."""
    return None if row[MASK_COLUMN] is None else image_bytes(row[MASK_COLUMN])


def mask_of(data: bytes | None, name: str, size: tuple[int, int]) -> Image.Image:
    """Return an image's mask in mode L; white if it has none."""
    if data is None:
        return Image.new("L", size, 255)
    mask = upright_rgb(decode_image(data, f"the mask of {name}"), BLACK).convert("L")
    if mask.size != size:
        raise DataError(f"the mask of {name} has {mask.size} px, it must have {size} like the image")
    return mask

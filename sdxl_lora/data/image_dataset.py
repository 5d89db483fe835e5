"""Training images with their captions: examples, and their pixels and masks on demand."""

import hashlib
import os
import random
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps

from sdxl_lora.data.dataset import BLACK, are_digests
from sdxl_lora.data.images import cover_and_crop, decode_image, upright_rgb
from sdxl_lora.data.open_folder import REPEATS, UNREADABLE
from sdxl_lora.data.size_conditioning import mirrored_crop
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.io.memo import NO_MEMO, Memo, file_facts
from sdxl_lora.rng import keyed_seed

SIZE_COLUMNS = ("original_size", "crop_top_left")


MASK_COLUMN, CLASS_COLUMN = "mask", "is_class_image"


SOURCE_COLUMN = "sha256"  # of the file that a picture was cut from


@dataclass(frozen=True)
class Example:
    """One picture with its caption. `key` changes with its pixels, mask and sizes; target_size is (height, width).

    Crops and copies of one picture share a `source`. repeats: how often it is passed per epoch.
    """

    name: str
    caption: str
    key: str
    target_size: tuple[int, int]
    is_class_image: bool = False
    source: str = ""
    repeats: Fraction | int = 1


class TrainingPictures:
    """Examples, and their pixels on demand; with `masked`, also their masks.

    Raises:
        DataError: a column is missing, a caption is not text, a size is not two whole numbers.
    """

    def __init__(
        self,
        dataset,
        image_column="image",
        caption_column="text",
        resolution=1024,
        center_crop=True,
        seed=0,
        masked=False,
        memo: Memo = NO_MEMO,
    ):
        missing = {image_column, caption_column} - set(dataset.column_names)
        if missing:
            columns = ", ".join(dataset.column_names)
            raise DataError(
                f"the dataset has no column {' or '.join(sorted(missing))}; its columns are {columns}. "
                "Choose with --image_column and --caption_column."
            )
        self.dataset = with_encoded_masks(dataset, masked)
        try:
            self.dataset = self.dataset.cast_column(image_column, datasets.Image(decode=False))
        except UNREADABLE as error:
            raise DataError(
                f"the column {image_column} holds no pictures ({error}): choose with --image_column"
            ) from None
        self.image_column, self.seed, self.center_crop = image_column, seed, center_crop
        self.resolution, self.masked = resolution, masked
        self.is_prepared = set(SIZE_COLUMNS) <= set(dataset.column_names)
        self.examples = [self._example(i, row, caption_column, memo) for i, row in enumerate(self.dataset)]
        self._warn_of_empty_captions()

    def __len__(self) -> int:
        return len(self.examples)

    def _example(self, index: int, row: dict, caption_column: str, memo: Memo) -> Example:
        image = row[self.image_column]
        if not image or (image["bytes"] is None and image["path"] is None):
            raise DataError(f"row {index} of the dataset has no picture: take it out")
        path = image["path"]
        name = path or f"picture {index}"
        caption = row[caption_column]
        if not isinstance(caption, str):
            raise DataError(f"the caption of {name} must be text, it is {caption!r}")
        sizes = list(self._position(index))
        if self.is_prepared:
            sizes = [*pair(row["original_size"], name, least=1), *pair(row["crop_top_left"], name)]
        about = [None if self.is_prepared else self.resolution, *sizes]
        if self.masked or image["bytes"] is not None or not os.path.isfile(path):
            key, source, *target_size = self._digests(index, row, sizes)
        else:
            facts = ["picture", *file_facts(path), *about]
            key, source, *target_size = memo.recall(facts, lambda: self._digests(index, row, sizes), are_digests)
        source, repeats = row.get(SOURCE_COLUMN) or source, row.get(REPEATS) or 1
        return Example(name, caption, key, tuple(target_size), bool(row.get(CLASS_COLUMN)), source, repeats)

    def _digests(self, index: int, row: dict, sizes: list) -> list:
        """Key and source of an example, height and width in pixels: all that its bytes are read for."""
        data, name = image_bytes(row[self.image_column], index)
        target_size = (self.resolution, self.resolution)
        if self.is_prepared:
            try:
                with Image.open(BytesIO(data)) as image:
                    target_size = (image.height, image.width)
            except Exception as error:  # damaged files bring errors of many classes
                decode_image(data, name)  # says what it is
                raise DataError(f"{name} cannot be read as a picture ({error})") from None
        if target_size[0] % 8 or target_size[1] % 8:
            height, width = target_size
            raise DataError(f"{name} is {width}x{height} px, width and height must be multiples of 8: run preprocess")
        mask = [content_key(mask_bytes(row) or b"")] if self.masked else []
        return [content_key(data, *sizes, *mask, *target_size), hashlib.sha256(data).hexdigest(), *target_size]

    def _position(self, index: int) -> tuple[float, float]:
        """Where an unprepared picture is cropped, x and y from 0 to 1: the same place in every epoch."""
        if self.center_crop:
            return 0.5, 0.5
        chance = random.Random(keyed_seed(self.seed, "crop", index))
        return chance.random(), chance.random()

    def load(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        """pixels (3, H, W) float32 in [-1, 1], original_size (2,), crop_top_left (2,); mirrored if `flip`.

        With masks also mask (1, H, W) in [0, 1]: ones where the picture has none.

        Raises:
            DataError: the picture or its mask cannot be decoded, or the mask does not fit.
        """
        row = self.dataset[index]
        data, name = image_bytes(row[self.image_column], index)
        image = upright_rgb(decode_image(data, name))
        mask = mask_of(row, name, image.size) if self.masked else None
        if self.is_prepared:
            original_size, crop_top_left = tuple(row["original_size"]), tuple(row["crop_top_left"])
        else:
            size = (self.resolution, self.resolution)
            image, original_size, crop_top_left = cover_and_crop(image, size, self._position(index))
            mask = mask and cover_and_crop(mask, size, self._position(index))[0]
        if flip:
            mask = mask and ImageOps.mirror(mask)
            image = ImageOps.mirror(image)
            crop_top_left = mirrored_crop(original_size, crop_top_left, (image.height, image.width))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        record = {
            "pixels": pixels,
            "original_size": torch.tensor(original_size),
            "crop_top_left": torch.tensor(crop_top_left),
        }
        if mask is not None:
            record["mask"] = torch.from_numpy(np.array(mask))[None].float() / 255
            if not record["mask"].any():
                raise DataError(f"the mask of {name} is black where the picture is trained: paint white what counts")
        return record

    def _warn_of_empty_captions(self) -> None:
        empty = [example.name for example in self.examples if not example.caption.strip()]
        if empty:
            names = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
            warnings.warn(f"{len(empty)} of {len(self)} pictures have an empty caption: {names}", stacklevel=3)


def image_bytes(image: dict, index: int) -> tuple[bytes, str]:
    """The encoded picture in a row, and a name for messages."""
    name = image["path"] or f"picture {index}"
    if image["bytes"] is not None:
        return image["bytes"], name
    try:
        return Path(image["path"]).read_bytes(), name
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None


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
    return None if row[MASK_COLUMN] is None else image_bytes(row[MASK_COLUMN], 0)[0]


def mask_of(row: dict, name: str, size: tuple[int, int]) -> Image.Image:
    """A picture's mask in mode L; white where it has none."""
    data = mask_bytes(row)
    if data is None:
        return Image.new("L", size, 255)
    mask = upright_rgb(decode_image(data, f"the mask of {name}"), BLACK).convert("L")
    if mask.size != size:
        raise DataError(f"the mask of {name} has {mask.size} px, it must have {size} like the picture")
    return mask


def check_class_images(examples: Iterable[Example], prior_loss_weight: float) -> None:
    """Raises ConfigError where a weight is given to class images that are not there."""
    if prior_loss_weight != 1 and not any(example.is_class_image for example in examples):
        raise ConfigError(
            f"prior_loss_weight is {prior_loss_weight}, but no picture is marked in a column {CLASS_COLUMN}: "
            "`python -m preprocess --class_images FOLDER` adds some"
        )


def pair(value, name: str, least: int = 0) -> tuple[int, int]:
    if not (isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int) and v >= least for v in value)):
        raise DataError(
            f"original_size and crop_top_left of {name} must be two whole numbers each, sizes above 0, found {value!r}"
        )
    return tuple(value)


def content_key(data: bytes, *facts) -> str:
    """32 hexadecimal digits that change with the bytes or any fact."""
    return hashlib.blake2b(repr(facts).encode() + b"\0" + data, digest_size=16).hexdigest()


def dataset_key(examples: Iterable[Example]) -> str:
    """32 hexadecimal digits that change with any picture, size, caption, class mark, repeats or their order."""

    def facts(example: Example) -> str:
        mark = "\0class" if example.is_class_image else ""
        return f"{example.key}{example.caption}{mark}" + (f"\0{example.repeats}" if example.repeats != 1 else "")

    return content_key(b"".join(f"{facts(example)}\0".encode() for example in examples))

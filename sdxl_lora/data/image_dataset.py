"""Training images with captions: examples, with pixels and masks on demand."""

import hashlib
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from PIL import ImageOps

from sdxl_lora.config.names import printable
from sdxl_lora.data.dataset_rows import (
    MASK_COLUMN,
    captions_in,
    facts_of_files,
    image_bytes,
    is_left_out,
    left_encoded,
    mask_bytes,
    mask_of,
    with_encoded_masks,
)
from sdxl_lora.data.open_folder import REPEATS, TEXT, UNREADABLE
from sdxl_lora.data.size_conditioning import mirrored_crop
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.folders.caption_tables import CAPTIONS
from sdxl_lora.images.colour import is_read_anew
from sdxl_lora.images.decode import ImageError, cover_and_crop, decode_image, image_header, upright_rgb
from sdxl_lora.io.memo import NO_MEMO, FileMemo, file_stamp
from sdxl_lora.rng import keyed_seed

SIZE_COLUMNS = ("original_size", "crop_top_left")


CLASS_COLUMN = "is_class_image"


SOURCE_COLUMN = "sha256"  # of the file that an image was cropped from


@dataclass(frozen=True)
class Example:
    """One image with its caption. `key` changes with its pixels, mask and sizes; target_size is (height, width).

    Crops and copies of one image share a `source`. repeats: passes per epoch. more_captions: captions beyond `caption`,
    if there are several.
    """

    name: str
    caption: str
    key: str
    target_size: tuple[int, int]
    is_class_image: bool = False
    source: str = ""
    repeats: Fraction | int = 1
    more_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        return (self.caption, *self.more_captions)


class Images(Protocol):
    """Training images of one or several datasets."""

    @property
    def examples(self) -> Sequence[Example]: ...

    @property
    def is_prepared(self) -> bool:
        """Return whether preprocess has sized all of them."""

    def __len__(self) -> int: ...

    def load(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]: ...


class Examples(Protocol):
    """A list of examples, or the examples at hand of a stream, indexed by key."""

    def __getitem__(self, example: Any, /) -> Example: ...

    def __iter__(self) -> Iterator[Example]: ...

    def __len__(self) -> int: ...


class ImageDataset:
    """Examples with pixels on demand and, if `masked`, their masks.

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
        memo: FileMemo = NO_MEMO,
        captions_per_line=False,
    ):
        if caption_column == TEXT and TEXT not in dataset.column_names and CAPTIONS in dataset.column_names:
            caption_column = CAPTIONS
        missing = {image_column, caption_column} - set(dataset.column_names)
        if missing:
            columns = ", ".join(dataset.column_names)
            raise DataError(
                f"the dataset has no column {' or '.join(sorted(missing))}; its columns are {columns}. "
                "Choose with --image_column and --caption_column."
            )
        further = (CAPTIONS, *SIZE_COLUMNS, MASK_COLUMN, CLASS_COLUMN, SOURCE_COLUMN, REPEATS)
        dataset = left_encoded(with_encoded_masks(dataset, masked), (image_column, caption_column, *further))
        try:
            self.dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        except UNREADABLE as error:
            raise DataError(
                f"the column {image_column} holds no images ({error}): choose another with --image_column"
            ) from None
        self.image_column, self.seed, self.center_crop = image_column, seed, center_crop
        self.resolution, self.masked, self.captions_per_line = resolution, masked, captions_per_line
        self.is_prepared = set(SIZE_COLUMNS) <= set(dataset.column_names)
        self.image_columns = (image_column, MASK_COLUMN) if masked else (image_column,)
        self.unused_texts: list[str] = []  # names of images whose text is not among their captions
        self.files: list[list] = []  # stamps of the files, taken before they are read
        self.examples = [self._example(i, row, caption_column, memo) for i, row in enumerate(self.dataset)]
        self._warn_of_captions(caption_column)

    def __len__(self) -> int:
        return len(self.examples)

    def _example(self, index: int, row: dict, caption_column: str, memo: FileMemo) -> Example:
        image = row[self.image_column]
        if not image or (image["bytes"] is None and not image["path"]):
            raise DataError(f"row {index} of the dataset has no image: remove the row")
        self.files.append(facts_of_files(row, self.image_columns))
        path = image["path"]
        name = printable(path or f"image {index}")
        caption, *others = captions_in(row, caption_column, self.captions_per_line, name)
        if others and is_left_out(row[caption_column], [caption, *others], self.captions_per_line):
            self.unused_texts.append(name)
        sizes = self._sizes(index, row, name)
        about = [None if self.is_prepared else self.resolution, *sizes]
        if self.masked or image["bytes"] is not None or not os.path.isfile(path):
            key, source, *target_size = self._digests(*self._bytes(row), name, sizes)
        else:
            facts = ["picture, its colours", *file_stamp(path), *about]
            key, source, *target_size = memo.get_or_compute(
                facts, lambda: self._digests(*self._bytes(row), name, sizes), are_digests
            )
        source, repeats = row.get(SOURCE_COLUMN) or source, row.get(REPEATS) or 1
        is_class = bool(row.get(CLASS_COLUMN))
        return Example(name, caption, key, tuple(target_size), is_class, source, repeats, tuple(others))

    def _sizes(self, index: int, row: dict, name: str) -> list:
        """Return the sizes that determine the crop and enter the key."""
        if self.is_prepared:
            return [*pair(row["original_size"], name, least=1), *pair(row["crop_top_left"], name)]
        return list(self._position(index))

    def _bytes(self, row: dict) -> tuple[bytes, bytes | None]:
        """Return the image and its mask, each read once."""
        return image_bytes(row[self.image_column]), mask_bytes(row) if self.masked else None

    def _digests(self, data: bytes, mask: bytes | None, name: str, sizes: list) -> list:
        """Return key, source, and height and width in pixels of an example: everything its bytes are read for."""
        target_size, anew = (self.resolution, self.resolution), []
        try:
            header = image_header(data, name)
            anew = ["colours"] if is_read_anew(header) else []
            target_size = (header.height, header.width) if self.is_prepared else target_size
        except ImageError:
            if self.is_prepared:
                raise
        if target_size[0] % 8 or target_size[1] % 8:
            height, width = target_size
            raise DataError(f"{name} is {width}x{height} px, width and height must be multiples of 8: run preprocess")
        mask_key = [content_key(mask or b"")] if self.masked else []
        return [
            content_key(data, *sizes, *mask_key, *target_size, *anew),
            hashlib.sha256(data).hexdigest(),
            *target_size,
        ]

    def _position(self, index: int) -> tuple[float, float]:
        """Return the crop position of an unprepared image, x and y from 0 to 1, the same in every epoch."""
        if self.center_crop:
            return 0.5, 0.5
        rng = random.Random(keyed_seed(self.seed, "crop", index))
        return rng.random(), rng.random()

    def load(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        """Return pixels (3, H, W) float32 in [-1, 1], original_size (2,), crop_top_left (2,); mirrored if `flip`.

        With masks also mask (1, H, W) in [0, 1], ones if the image has none.

        Raises:
            DataError: the image or its mask cannot be decoded or has changed since the run began; or the mask does not
                fit.
        """
        row = self.dataset[index]
        name = self.examples[index].name
        data, mask_data = self._bytes(row)
        if facts_of_files(row, self.image_columns) != self.files[index]:
            key = self._digests(data, mask_data, name, self._sizes(index, row, name))[0]
            if key != self.examples[index].key:
                raise DataError(f"{name} or its mask has changed since the run began: start the run again")
        image = upright_rgb(decode_image(data, name))
        mask = mask_of(mask_data, name, image.size) if self.masked else None
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
                raise DataError(f"the mask of {name} is black where the image is trained: paint what counts white")
        return record

    def _warn_of_captions(self, caption_column: str) -> None:
        empty = [e.name for e in self.examples if not all(caption.strip() for caption in e.captions)]
        unused = f"have a {caption_column} that is not among their {CAPTIONS} and is not used: add it to them"
        for names, what in ((empty, "have an empty caption"), (self.unused_texts, unused)):
            if names:
                shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
                warnings.warn(f"{len(names)} of {len(self)} images {what}: {shown}", stacklevel=3)


def check_class_images(examples: Iterable[Example], prior_loss_weight: float, preserves: bool = False) -> None:
    """Raise ConfigError if prior_loss_weight is set without class images or preservation steps.

    Args:
        preserves: some steps preserve the base's predictions and weigh as class images do.
    """
    if prior_loss_weight != 1 and not preserves and not any(example.is_class_image for example in examples):
        raise ConfigError(
            f"prior_loss_weight is {prior_loss_weight}, but no image is marked in a column {CLASS_COLUMN}: "
            "`python -m preprocess --class_images FOLDER` adds some, --output_preservation works without them"
        )


def pair(value, name: str, least: int = 0) -> tuple[int, int]:
    if not (isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int) and v >= least for v in value)):
        raise DataError(
            f"original_size and crop_top_left of {name} must be two whole numbers each, sizes above 0, found {value!r}"
        )
    return tuple(value)


def content_key(data: bytes, *facts) -> str:
    """Return 32 hexadecimal digits that change with the bytes or any fact."""
    return hashlib.blake2b(repr(facts).encode() + b"\0" + data, digest_size=16).hexdigest()


def dataset_key(examples: Iterable[Example]) -> str:
    """Return 32 hexadecimal digits that change with any image, size, caption, class mark, repeats or their order."""

    def facts(example: Example) -> str:
        mark = "\0class" if example.is_class_image else ""
        others = "".join(f"\0caption{caption}" for caption in example.more_captions)
        repeats = f"\0{example.repeats}" if example.repeats != 1 else ""
        return f"{example.key}{example.caption}{mark}{repeats}{others}"

    return content_key(b"".join(f"{facts(example)}\0".encode() for example in examples))


def are_digests(result) -> bool:
    """Return whether a value has the form of ImageDataset._digests' result."""
    return isinstance(result, list) and list(map(type, result)) == [str, str, int, int]

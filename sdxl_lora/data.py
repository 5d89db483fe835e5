"""The training pictures: where they come from, the dataset's columns, and what SDXL is told of each picture's size.

The contract with preprocess is its columns: image, text, original_size [h, w], crop_top_left [y, x]. Pictures with the
last two are trained as they are; others are cropped here to the resolution's square. Knows no models.
"""

import hashlib
import random
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub import DatasetCard
from PIL import Image, ImageOps

from sdxl_lora.batches import keyed_seed
from sdxl_lora.errors import DataError
from sdxl_lora.images import SUFFIXES, cover_and_crop, decode_image, upright_rgb

SIZE_COLUMNS = ("original_size", "crop_top_left")


@dataclass(frozen=True)
class Example:
    """One picture with its caption. `key` changes with its pixels and sizes; target_size is (height, width)."""

    name: str
    caption: str
    key: str
    target_size: tuple[int, int]


def open_dataset(
    train_data_dir: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    max_samples: int | None = None,
) -> datasets.Dataset:
    """The training pictures as a dataset with a column of encoded images, one of captions, and perhaps SIZE_COLUMNS.

    A folder may hold metadata.jsonl (preprocess), Parquet files, what save_to_disk wrote, or pictures with .txt
    captions beside them.

    Raises:
        DataError: nothing there, not readable, or no pictures.
    """
    folder = Path(train_data_dir or dataset_name or "")
    try:
        if (folder / "dataset_info.json").exists():
            dataset = datasets.load_from_disk(folder)
        elif not folder.is_dir() and train_data_dir is None:
            dataset = datasets.load_dataset(dataset_name, dataset_config_name, split="train")
        elif not folder.is_dir():
            raise DataError(f"no such folder: {folder}")
        elif any(folder.glob("metadata.*")):
            dataset = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
        elif any(folder.rglob("*.parquet")):
            dataset = datasets.load_dataset("parquet", data_dir=str(folder), split="train")
        else:
            dataset = folder_of_captioned_pictures(folder)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot open the dataset {folder}: {error.__cause__ or error}") from error
    if isinstance(dataset, datasets.DatasetDict):
        dataset = dataset["train"]
    if max_samples is not None:
        dataset = dataset.select(range(min(max_samples, len(dataset))))
    if not len(dataset):
        raise DataError(f"no usable images in {folder}")
    return dataset


def folder_of_captioned_pictures(folder: Path) -> datasets.Dataset:
    """Pictures in a folder and its subfolders, each with the text of the .txt file beside it."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"no pictures ({', '.join(SUFFIXES)}) in {folder}")
    captions = []
    for path in paths:
        text_file = path.with_suffix(".txt")
        try:
            captions.append(text_file.read_text(encoding="utf-8-sig").strip() if text_file.exists() else "")
        except UnicodeDecodeError as error:
            raise DataError(f"{text_file} is not UTF-8 ({error}): save it as UTF-8") from None
    columns = {"image": [str(path) for path in paths], "text": captions}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def trigger_word_of(folder: str | None) -> str:
    """The trigger word that preprocess wrote into the dataset's card; "" where there is none."""
    card = Path(folder or "") / "README.md"
    if folder is None or not card.is_file():
        return ""
    return str(DatasetCard.load(card).data.get("trigger_word") or "")


class TrainingPictures:
    """Examples, and their pixels on demand.

    Raises:
        DataError: a column is missing, a caption is not text, a size is not two whole numbers.
    """

    def __init__(self, dataset, image_column="image", caption_column="text", resolution=1024, center_crop=True, seed=0):
        missing = {image_column, caption_column} - set(dataset.column_names)
        if missing:
            columns = ", ".join(dataset.column_names)
            raise DataError(
                f"the dataset has no column {' or '.join(sorted(missing))}; its columns are {columns}. "
                "Choose with --image_column and --caption_column."
            )
        self.dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        self.image_column, self.seed, self.center_crop = image_column, seed, center_crop
        self.resolution = resolution
        self.is_prepared = set(SIZE_COLUMNS) <= set(dataset.column_names)
        self.examples = [self._example(i, row, caption_column) for i, row in enumerate(self.dataset)]
        self._warn_of_empty_captions()

    def __len__(self) -> int:
        return len(self.examples)

    def _example(self, index: int, row: dict, caption_column: str) -> Example:
        data, name = image_bytes(row[self.image_column], index)
        caption = row[caption_column]
        if not isinstance(caption, str):
            raise DataError(f"the caption of {name} must be text, it is {caption!r}")
        if self.is_prepared:
            sizes = [*pair(row["original_size"], name), *pair(row["crop_top_left"], name)]
            with Image.open(BytesIO(data)) as image:
                target_size = (image.height, image.width)
        else:
            sizes = list(self._position(index))
            target_size = (self.resolution, self.resolution)
        if target_size[0] % 8 or target_size[1] % 8:
            height, width = target_size
            raise DataError(f"{name} is {width}x{height} px, width and height must be multiples of 8: run preprocess")
        return Example(name, caption, content_key(data, *sizes, *target_size), target_size)

    def _position(self, index: int) -> tuple[float, float]:
        """Where an unprepared picture is cropped, x and y from 0 to 1: the same place in every epoch."""
        if self.center_crop:
            return 0.5, 0.5
        chance = random.Random(keyed_seed(self.seed, "crop", index))
        return chance.random(), chance.random()

    def load(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        """pixels (3, H, W) float32 in [-1, 1], original_size (2,), crop_top_left (2,); mirrored if `flip`.

        Raises:
            DataError: the picture cannot be decoded.
        """
        row = self.dataset[index]
        data, name = image_bytes(row[self.image_column], index)
        image = upright_rgb(decode_image(data, name))
        if self.is_prepared:
            original_size, crop_top_left = tuple(row["original_size"]), tuple(row["crop_top_left"])
        else:
            size = (self.resolution, self.resolution)
            image, original_size, crop_top_left = cover_and_crop(image, size, self._position(index))
        if flip:
            image = ImageOps.mirror(image)
            crop_top_left = mirrored_crop(original_size, crop_top_left, (image.height, image.width))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        return {
            "pixels": pixels,
            "original_size": torch.tensor(original_size),
            "crop_top_left": torch.tensor(crop_top_left),
        }

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


def pair(value, name: str) -> tuple[int, int]:
    if not (isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int) and v >= 0 for v in value)):
        raise DataError(f"original_size and crop_top_left of {name} must be two whole numbers each, found {value!r}")
    return tuple(value)


def content_key(data: bytes, *facts) -> str:
    """32 hexadecimal digits that change with the bytes or any fact."""
    return hashlib.blake2b(repr(facts).encode() + b"\0" + data, digest_size=16).hexdigest()


def mirrored_crop(original_size, crop_top_left, target_size) -> tuple[int, int]:
    """crop_top_left (y, x) once the picture is mirrored: what was cut off on the left is now cut off on the right."""
    (height, width), (top, left), (target_height, target_width) = original_size, crop_top_left, target_size
    resized_width = max(target_width, round(width * max(target_width / width, target_height / height)))
    return top, max(0, resized_width - target_width - left)


def time_ids(original_size, crop_top_left, target_size) -> torch.Tensor:
    """SDXL's size conditioning (arXiv:2307.01952, section 2.2).

    Args:
        original_size: (B, 2) height, width in pixels, before any resize.
        crop_top_left: (B, 2) y, x in pixels of the resized image.
        target_size: (B, 2) height, width in pixels of what the UNet sees.
    Returns:
        (B, 6) float32, in that order.
    Raises:
        ValueError: a size below 1 or a crop below 0.
    """
    parts = [torch.as_tensor(part).float().reshape(-1, 2) for part in (original_size, crop_top_left, target_size)]
    if (parts[0] < 1).any() or (parts[1] < 0).any() or (parts[2] < 1).any():
        raise ValueError("sizes must be at least 1 and crops at least 0")
    return torch.cat(parts, dim=1)


def dataset_key(examples: Iterable[Example]) -> str:
    """32 hexadecimal digits that change with any picture, size, caption or their order."""
    return content_key(b"".join(f"{example.key}{example.caption}\0".encode() for example in examples))

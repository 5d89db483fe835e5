"""Training images: their source, the dataset's columns, and the size conditioning of each image.

preprocess and the trainer agree on columns: image, text, original_size [h, w], crop_top_left [y, x], and optionally
mask and is_class_image. Images with sizes are trained unchanged; others are cropped here to the resolution's square.
Knows no models.
"""

from pathlib import Path

import datasets

from sdxl_lora.config.sections.data import DataConfig
from sdxl_lora.data.open_folder import UNREADABLE, open_folder
from sdxl_lora.errors import DataError
from sdxl_lora.folders.dataset_card import trigger_word_in
from sdxl_lora.io.regular_files import check_readable_by_datasets


def open_dataset(
    train_data_dir: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    max_samples: int | None = None,
) -> datasets.Dataset:
    """Return the training images as a dataset with columns of encoded images, captions and perhaps SIZE_COLUMNS.

    Raises:
        DataError: the dataset is missing, unreadable, or has no images.
    """
    folder = Path(train_data_dir or dataset_name or "")
    try:
        check_readable_by_datasets(folder)
        if folder.is_dir():
            dataset = open_folder(folder)
        elif train_data_dir is None:
            dataset = datasets.load_dataset(dataset_name, dataset_config_name, split="train")
        else:
            raise DataError(f"no such folder: {folder}")
    except UNREADABLE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot open the dataset {folder}: {error.__cause__ or error}") from error
    if max_samples is not None:
        dataset = dataset.select(range(min(max_samples, len(dataset))))
    if not len(dataset):
        raise DataError(f"no usable images in {folder}")
    return dataset


def trigger_words_of(data: DataConfig) -> list[str]:
    """Return the datasets' distinct trigger words, from the settings or else from the card that preprocess wrote."""
    words = [entry.trigger_word or trigger_word_of(entry.train_data_dir) for entry in data.entries()]
    return [word for word in dict.fromkeys(words) if word]


def trigger_word_of(folder: str | None) -> str:
    """Return the trigger word that preprocess wrote into the dataset's card; "" if there is none."""
    card = Path(folder or "") / "README.md"
    return "" if folder is None or not card.is_file() else trigger_word_in(card)

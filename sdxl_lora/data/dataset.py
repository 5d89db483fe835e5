"""The training pictures: where they come from, the dataset's columns, and what SDXL is told of each picture's size.

The contract with preprocess is its columns: image, text, original_size [h, w], crop_top_left [y, x], and where there
are such, mask and is_class_image. Pictures with sizes are trained as they are; others are cropped here to the
resolution's square. Knows no models.
"""

from pathlib import Path

import datasets
from huggingface_hub import DatasetCard

from sdxl_lora.config.sections.data import DataConfig
from sdxl_lora.data.images import SUFFIXES
from sdxl_lora.errors import DataError
from sdxl_lora.io.memo import NO_MEMO, Memo, folder_facts


def open_dataset(
    train_data_dir: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    max_samples: int | None = None,
    memo: Memo = NO_MEMO,
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
            dataset = open_image_folder(folder, memo)
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


def open_image_folder(folder: Path, memo: Memo) -> datasets.Dataset:
    """What `datasets` makes of a folder with metadata; of an unchanged one, the Arrow file it made before."""
    loaded = []

    def load() -> list[str]:
        loaded.append(datasets.load_dataset("imagefolder", data_dir=str(folder), split="train"))
        return [file["filename"] for file in loaded[0].cache_files]

    files = memo.recall(["imagefolder", *folder_facts(folder)], load)
    if loaded or len(files) != 1 or not Path(files[0]).exists():
        return loaded[0] if loaded else datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    return datasets.Dataset.from_file(files[0])


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


def trigger_words_of(data: DataConfig) -> list[str]:
    """The datasets' trigger words, each once: as the settings say, else as preprocess wrote into a dataset's card."""
    words = [entry.trigger_word or trigger_word_of(entry.train_data_dir) for entry in data.entries()]
    return [word for word in dict.fromkeys(words) if word]


def trigger_word_of(folder: str | None) -> str:
    """The trigger word that preprocess wrote into the dataset's card; "" where there is none."""
    card = Path(folder or "") / "README.md"
    if folder is None or not card.is_file():
        return ""
    return str(DatasetCard.load(card).data.get("trigger_word") or "")

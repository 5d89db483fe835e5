"""Another caption for one picture of a dataset, by the captioner that it was prepared with, in a process of its own.

python -m webui.runs.recaption DATASET FILE_NAME
"""

import sys
from pathlib import Path

from preprocess.__main__ import plan_of, wording_of
from preprocess.captions.caption_all import caption_batch
from preprocess.captions.caption_text import without_stock_phrase
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.images.decode import open_image
from webui.runs.dataset_view import change_texts, read_dataset, rows_of


def recaption(folder: Path, file_name: str) -> str:
    """The new text, which then stands in metadata.jsonl.

    Raises:
        ConfigError: the dataset was prepared without a captioner, or it cannot be loaded; no such picture.
        DataError: the captioner gives no words for it.
    """
    config = read_dataset(folder).config()
    plan = plan_of(config)
    if plan.load is None:
        raise ConfigError(f"{folder} was prepared without a captioner (caption_model is none)")
    row = next((row for row in rows_of(folder) if row["file_name"] == file_name), None)
    if row is None:
        raise ConfigError(f"{file_name} is no longer in the dataset: load it again")
    plan.check()
    with plan.load() as caption:
        ((text, reason),) = caption_batch(caption, [open_image(folder / file_name).convert("RGB")])
    if reason:
        raise DataError(f"{file_name}: {reason}")
    text = without_stock_phrase(text) if plan.clean else text
    text = wording_of(config).text(text, bool(row.get("is_class_image")))
    change_texts(folder, lambda row: text if row["file_name"] == file_name else row["text"])
    return text


if __name__ == "__main__":
    try:
        print(f"{sys.argv[2]}: {recaption(Path(sys.argv[1]), sys.argv[2])}")
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

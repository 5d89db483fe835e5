"""Make a new caption for one image of a dataset, with the captioner that prepared it, in a process of its own.

python -m webui.runs.recaption DATASET FILE_NAME [PLACE]
"""

import sys
from pathlib import Path

from preprocess.captions.caption_all import caption_batch, captions_of
from preprocess.captions.caption_plan import plan_of
from preprocess.captions.caption_text import wording_of
from preprocess.editing.prepared import read_dataset, rows_of, save_text, text_of
from preprocess.jobs.state import keep_before_recaption
from sdxl_lora.errors import ConfigError, DataError, DiskError
from sdxl_lora.images.decode import open_image


def recaption(folder: Path, file_name: str, place: int = 0) -> str:
    """Make and save a new caption for an image; the old row is kept in .preprocess/before_recaption.jsonl.

    Returns the caption; of several the first, and the others are saved beside it.

    Args:
        place: index among the rows of this file.
    Raises:
        ConfigError: the dataset was prepared without a captioner, or it cannot be loaded; no such image; or a person
            has changed its caption meanwhile, which is kept.
        DataError: the captioner gives no words for it.
    """
    config = read_dataset(folder).config()
    plan = plan_of(config)
    if not plan.captioners:
        raise ConfigError(f"{folder} was prepared without a captioner (caption_model is none)")
    rows = [row for row in rows_of(folder) if row["file_name"] == file_name]
    row = rows[place] if place < len(rows) else None
    if row is None:
        raise ConfigError(f"{file_name} is no longer in the dataset: load it again")
    plan.check()
    said = []
    for captioner in plan.captioners:
        with captioner.load() as caption:
            ((text, reason),) = caption_batch(caption, [open_image(folder / file_name).convert("RGB")])
        if reason:
            raise DataError(f"{file_name}: {reason}")
        said.append(text)
    wording, is_class_image = wording_of(config), bool(row.get("is_class_image"))
    text, *others = [wording.text(caption, is_class_image) for caption in captions_of(said, plan)]
    if not save_text(folder, file_name, text_of(row), text, place, others):
        return text
    keep_before_recaption(folder / ".preprocess", [row])
    return text


if __name__ == "__main__":
    try:
        print(f"{sys.argv[2]}: {recaption(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))}")
    except (ConfigError, DataError, DiskError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

"""Pictures that are read as they come, however many there are: Parquet files, WebDataset tars, or a dataset on the Hub.

Each process reads its own part (datasets' split_dataset_by_node); the files come in another order in each pass. Rows
are shuffled block by block: a block's order is a function of (seed, pass, block), so that a place in the stream is
where its block begins and how much of it is taken, and no buffer has to be saved (that of datasets loses its rows).
"""

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import datasets
import fsspec

from sdxl_lora.data.prefetch import ahead
from sdxl_lora.errors import DataError
from sdxl_lora.rng import keyed_seed

PICTURE_SUFFIXES, CAPTION_SUFFIX = ("jpg", "jpeg", "png", "webp"), "txt"  # columns of a WebDataset
ROWS_AHEAD = 32  # read while others are worked on, at least; a whole block where blocks are larger


def open_stream(
    train_data_dir: str | None,
    dataset_name: str | None,
    dataset_config_name: str | None = None,
    max_samples: int | None = None,
) -> datasets.IterableDataset:
    """The rows of a folder's .tar or .parquet files or of what preprocess wrote there, or of a dataset on the Hub.

    Pictures come encoded. Raises DataError where there is no such thing.
    """
    folder = Path(train_data_dir or "")
    try:
        if train_data_dir is None:
            stream = datasets.load_dataset(dataset_name, dataset_config_name, split="train", streaming=True)
        elif files := sorted(map(str, folder.rglob("*.tar"))):
            stream = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
        elif files := sorted(map(str, folder.rglob("*.parquet"))):
            stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        elif any(folder.glob("metadata.*")):
            stream = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", streaming=True)
        else:
            raise DataError(f"no .tar and no .parquet files in {folder}, which dataset_streaming needs")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot open the stream {dataset_name or folder}: {error}") from error
    stream = stream.decode(False)
    return stream if max_samples is None else stream.take(max_samples)


@dataclass(frozen=True)
class Place:
    """Where the reading stands: after the first `taken` rows of a shuffled block.

    `stream` is datasets' state at the beginning of the block; None at that of a pass.
    """

    epoch: int = 0
    block: int = 0
    taken: int = 0
    stream: dict | None = None


def shuffled_rows(
    stream: datasets.IterableDataset, place: Place, columns: tuple[str, str], block_size: int, seed: int
) -> Iterator[tuple[dict, Place]]:
    """The rows from a place on, pass after pass, each with the place after it; read ahead by a thread.

    Args:
        columns: of pictures and of captions, see `plain_row`.
        block_size: so many rows are shuffled among each other; 1 leaves them as they are stored.
    Raises:
        DataError: there are no rows, or the stream breaks off.
    """
    taken = place.taken
    with closing(ahead(stored_rows(stream, place, columns, block_size), max(block_size, ROWS_AHEAD))) as stored:
        for (epoch, block), of_block in groupby(stored, lambda stored: (stored[1].epoch, stored[1].block)):
            rows, begins = zip(*of_block, strict=True)
            order = list(range(len(rows)))
            random.Random(keyed_seed(seed, "stream", epoch, block)).shuffle(order)
            for index in order[taken:]:
                taken += 1
                yield rows[index], replace(begins[0], taken=taken)
            taken = 0


def stored_rows(
    stream: datasets.IterableDataset, place: Place, columns: tuple[str, str], block_size: int
) -> Iterator[tuple[dict, Place]]:
    """The rows as they are stored, from where the block of a place begins, each with the place where its own begins."""
    begin = replace(place, taken=0)
    while True:
        stream.set_epoch(begin.epoch)
        if begin.stream:
            stream.load_state_dict(begin.stream)
        number = 0
        try:
            for number, row in enumerate(stream, start=1):
                yield plain_row(row, *columns), begin
                if number % block_size == 0:
                    begin = replace(begin, block=begin.block + 1, stream=stream.state_dict())
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read on in the stream: {error}") from error
        if not number and not begin.stream:
            raise DataError("no pictures in the part of the stream that this process reads: too few for all, or none")
        begin = Place(begin.epoch + 1)


def plain_row(row: dict, image_column: str, caption_column: str) -> dict:
    """A row as other datasets have it: of a WebDataset, columns by their suffixes and what stands in its JSON.

    The picture's bytes come with it.
    """
    row = dict(row)
    if image_column not in row:
        suffix = next((suffix for suffix in PICTURE_SUFFIXES if row.get(suffix)), None)
        if suffix:
            row[image_column] = row.pop(suffix)
    if caption_column not in row and CAPTION_SUFFIX in row:
        row[caption_column] = row.pop(CAPTION_SUFFIX)
    if isinstance(row.get("json"), dict):
        row |= row.pop("json")
    picture = row.get(image_column)
    if isinstance(picture, bytes):
        row[image_column] = {"bytes": picture, "path": row.get("__key__")}
    elif isinstance(picture, dict) and picture.get("bytes") is None:
        with fsspec.open(picture["path"], "rb") as file:
            row[image_column] = {"bytes": file.read(), "path": picture["path"]}
    return row

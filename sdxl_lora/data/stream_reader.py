"""Streams of images of any length: Parquet files, WebDataset tars, or a dataset on the Hub.

Each process reads its own part (datasets' split_dataset_by_node), and the order of files changes in each pass. Rows
are shuffled within blocks, in an order that depends on (seed, pass, block). A place in the stream is thus the start
of its block and the rows taken from it; no buffer is saved (datasets' own shuffle buffer loses its rows).
"""

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import datasets
import fsspec

from sdxl_lora.data.open_folder import (
    UNREADABLE,
    files_below,
    literal,
    say,
    say_all,
    say_others,
    shards_in,
    training_files,
)
from sdxl_lora.data.prefetch import prefetch
from sdxl_lora.data.tar_reader import CAPTIONS, IMAGES, tar_stream
from sdxl_lora.errors import DataError
from sdxl_lora.folders.caption_files import caption_in
from sdxl_lora.folders.caption_tables import OF_DATASETS
from sdxl_lora.folders.finder import find_images
from sdxl_lora.io.regular_files import check_readable_by_datasets
from sdxl_lora.rng import keyed_seed

ROWS_AHEAD = 32  # minimum read ahead; a whole block if blocks are larger


def open_stream(
    train_data_dir: str | None,
    dataset_name: str | None,
    dataset_config_name: str | None = None,
    max_samples: int | None = None,
) -> datasets.IterableDataset:
    """Open the rows of a folder's .tar or .parquet files or preprocess's output, or of a dataset on the Hub.

    Images come encoded. Raises DataError if there is nothing to read.
    """
    try:
        if train_data_dir is not None:
            check_readable_by_datasets(Path(train_data_dir))
        if train_data_dir is None:
            stream = datasets.load_dataset(dataset_name, dataset_config_name, split="train", streaming=True)
            stream = stream.decode(False)
        else:
            stream = folder_stream(Path(train_data_dir))
    except UNREADABLE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot open the stream {dataset_name or train_data_dir}: {error}") from error
    return stream if max_samples is None else stream.take(max_samples)


def folder_stream(folder: Path) -> datasets.IterableDataset:
    if tars := files_below(folder, ".tar"):
        say_others(folder, tars, "beside .tar files")
        return tar_stream(list(map(str, tars)))
    if shards := shards_in(folder):
        say_others(folder, shards, "beside Parquet files of images")
        kind, files = "parquet", training_files(folder, shards)
    elif files := [path for name in OF_DATASETS for path in files_below(folder, name) if path.name == name]:
        kind, found = "imagefolder", find_images(folder)
        named = {source.name for source, *_ in found.lines}
        say_all(found)
        others = [source.name for source in found.sources if source.name not in named]
        say(folder, "not used, the metadata does not name them, and a stream reads only what it names", others)
    else:
        raise DataError(f"no .tar and no .parquet files in {folder}, which dataset_streaming needs")
    data_files = {"train": literal(files)}
    return datasets.load_dataset(kind, data_files=data_files, split="train", streaming=True).decode(False)


@dataclass(frozen=True)
class Place:
    """A place in a stream: after the first `taken` rows of a shuffled block.

    `stream` is datasets' state at the start of the block; None at the start of a pass.
    """

    epoch: int = 0
    block: int = 0
    taken: int = 0
    stream: dict | None = None


def shuffled_rows(
    stream: datasets.IterableDataset, place: Place, columns: tuple[str, str], block_size: int, seed: int
) -> Iterator[tuple[dict, Place]]:
    """Yield the rows from a place on, pass after pass, each with the place after it; a thread reads ahead.

    Args:
        columns: image column and caption column, see `plain_row`.
        block_size: rows shuffled together; 1 keeps the stored order.
    Raises:
        DataError: there are no rows, or the stream breaks off.
    """
    taken = place.taken
    with closing(prefetch(stored_rows(stream, place, columns, block_size), max(block_size, ROWS_AHEAD))) as stored:
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
    """Yield the rows in stored order from the start of a place's block, each with the start of its own block."""
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
        except UNREADABLE as error:
            raise DataError(f"cannot read any further in the stream: {error}") from error
        if not number and not begin.stream:
            raise DataError(
                "no images in the part of the stream that this process reads: too few for all processes, or none"
            )
        begin = Place(begin.epoch + 1)


def plain_row(row: dict, image_column: str, caption_column: str) -> dict:
    """Return a row with ordinary columns: a WebDataset's image and caption by suffix, and its JSON's entries.

    The image's bytes are included.
    """
    row = dict(row)
    if image_column not in row:
        suffix = next((suffix for suffix in IMAGES if row.get(suffix)), None)
        if suffix:
            row[image_column] = row.pop(suffix)
    if caption_column not in row and (suffix := next((suffix for suffix in CAPTIONS if suffix in row), None)):
        row[caption_column] = row.pop(suffix)
    if isinstance(row.get("json"), dict):
        about = row.pop("json")
        row |= {key: value for key, value in about.items() if key != image_column}
        if caption_column not in row and (caption := caption_in(about)) is not None:
            row[caption_column] = caption
    image = row.get(image_column)
    if isinstance(image, bytes):
        row[image_column] = {"bytes": image, "path": row.get("__key__")}
    elif isinstance(image, dict) and image.get("bytes") is None and image.get("path"):
        with fsspec.open(image["path"], "rb") as file:
            row[image_column] = {"bytes": file.read(), "path": image["path"]}
    return row

"""Pictures that are read as they come, however many there are: Parquet files, WebDataset tars, or a dataset on the Hub.

Each process reads its own part (datasets' split_dataset_by_node), in the order in which it is stored; the files come in
another order in each pass. Pictures of one size wait until they fill a micro-batch. A checkpoint holds where the
reading stands and what waits, so that the same number of processes goes on with the same pictures. Nothing is kept on
the disk: latents are computed in every turn. What chance gives a picture is keyed by its content.
"""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
import torch
import torch.nn.functional as F
from datasets.distributed import split_dataset_by_node

from sdxl_lora.batches import Turn
from sdxl_lora.cache import vae_moments
from sdxl_lora.data import Example, TrainingPictures
from sdxl_lora.errors import DataError, NonFiniteError

PICTURE_SUFFIXES, CAPTION_SUFFIX = ("jpg", "jpeg", "png", "webp"), "txt"  # columns of a WebDataset
STEPS_REMEMBERED = 256  # more than lie between reading a step's pictures and saving the step, or telling of it
STEPS_AT_HAND = 4  # of these also the pictures themselves


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


class Rows(list):
    """Rows in memory, with as much of a dataset's manners as TrainingPictures asks for."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def cast_column(self, *_) -> "Rows":
        return self

    def remove_columns(self, name: str) -> "Rows":
        return Rows({key: value for key, value in row.items() if key != name} for row in self)


class StreamedPictures:
    """What TrainingPictures' examples and a LatentCache are, for the pictures at hand: by keys in place of indices.

    Args:
        open_rows: TrainingPictures of Rows.
        vae: in float32, on the device that is to encode.
        vae_key: see cache.weights_key.
    """

    def __init__(self, open_rows: Callable[[Rows], TrainingPictures], vae, vae_key: str):
        self.open_rows, self.vae, self.vae_key = open_rows, vae, vae_key
        self._pictures: dict[str, TrainingPictures] = {}

        self._examples: dict[str, Example] = {}

    def add(self, row: dict) -> Example:
        pictures = self.open_rows(Rows([row]))
        example = pictures.examples[0]
        self._pictures[example.key], self._examples[example.key] = pictures, example
        return example

    def keep_only(self, at_hand: set[str], remembered: set[str]) -> None:
        """Forget all other pictures, and the examples of all others."""
        self._pictures = {key: self._pictures[key] for key in at_hand}
        self._examples = {key: self._examples[key] for key in at_hand | remembered}

    def __getitem__(self, key: str) -> Example:
        return self._examples[key]

    def __iter__(self) -> Iterator[Example]:
        return iter(list(self._examples.values()))

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, key: str, flip: bool = False) -> dict[str, torch.Tensor]:
        """See LatentCache; raises NonFiniteError where the VAE gives NaN or infinity."""
        record = self._pictures[key].load(0, flip)
        record |= vae_moments(self.vae, record.pop("pixels")[None])
        if "mask" in record:
            record["mask"] = F.adaptive_avg_pool2d(record["mask"], record["mean"].shape[-2:])
        if not (record["mean"].isfinite().all() and record["std"].isfinite().all()):
            raise NonFiniteError(f"the VAE gives NaN or infinity for {self[key].name}: look at the picture")
        return record


class StreamedBatches:
    """The steps of a training from a stream; what Batches is for pictures that are all known.

    A step has `images_per_step` places, as `batches.share` deals them out; at those of other processes it has None.
    """

    pictures, members = 0, ()  # nobody knows how many pictures there are, and of which sizes

    def __init__(
        self,
        stream: datasets.IterableDataset,
        pictures: StreamedPictures,
        image_column: str,
        caption_column: str,
        batch_size: int,
        micro_steps: int,
        rank: int,
        world: int,
    ):
        self.files = stream.num_shards
        self.stream, self.examples = split_dataset_by_node(stream, rank, world), pictures
        self.columns, self.batch_size, self.micro_steps = (image_column, caption_column), batch_size, micro_steps
        self.rank, self.world = rank, world
        self.waiting: dict[tuple, list[tuple[Turn, dict]]] = defaultdict(list)
        self.epoch, self._begin = 0, None
        self._recent: deque[tuple[int, dict, list[Turn]]] = deque(maxlen=STEPS_REMEMBERED)

    @property
    def key(self) -> str:
        """What a resumed run must have in common with the run before."""
        return f"a stream of {self.files} files, read by {self.world} processes"

    def passes(self, step: int) -> float:
        return 0.0

    def epoch_of(self, step: int) -> int:
        return 0

    def from_step(self, first: int) -> Iterator[tuple[int, list[Turn | None]]]:
        """(0, turns) of step `first`, where the reading stands, and of every later one."""
        rows, step = self._rows(), first
        self._recent.append((step, self._state(), []))
        while True:
            turns: list[Turn | None] = [None] * (self.batch_size * self.micro_steps * self.world)
            for micro_step in range(self.micro_steps):
                place = (micro_step * self.world + self.rank) * self.batch_size
                turns[place : place + self.batch_size] = self._micro_batch(rows)
            step += 1
            self._recent.append((step, self._state(), [turn for turn in turns if turn]))
            self._forget()
            yield 0, turns

    def _forget(self) -> None:
        steps = [{turn.example for turn in of_step} for _, _, of_step in self._recent]
        waiting = {turn.example for of_size in self.waiting.values() for turn, _ in of_size}
        self.examples.keep_only(waiting.union(*steps[-STEPS_AT_HAND:]), set().union(*steps))

    def _micro_batch(self, rows: Iterator[dict]) -> list[Turn]:
        while True:
            row = next(rows)
            if batch := self._add(row, self.epoch):
                return batch

    def _add(self, row: dict, epoch: int) -> list[Turn]:
        """Let a picture wait for others of its size; those that fill a micro-batch with it are returned."""
        example = self.examples.add(row)
        waiting = self.waiting[example.target_size]
        waiting.append((Turn(example.key, epoch), row))
        if len(waiting) < self.batch_size:
            return []
        del self.waiting[example.target_size]
        return [turn for turn, _ in waiting]

    def _rows(self) -> Iterator[dict]:
        """The rows from where the reading stands, pass after pass."""
        is_resumed = self.epoch > 0 or bool(self.waiting)
        while True:
            self.stream.set_epoch(self.epoch)
            number = 0
            for row in self.stream:
                number += 1
                yield plain_row(row, *self.columns)
            if not number and not is_resumed:
                raise DataError(f"no pictures in the part of the stream that process {self.rank} of {self.world} reads")
            self.epoch, is_resumed = self.epoch + 1, False

    def _state(self) -> dict:
        waiting = [item for of_size in self.waiting.values() for item in of_size]
        return {
            "epoch": self.epoch,
            "stream": self.stream.state_dict() if self._recent else self._begin,
            "waiting_epochs": [turn.epoch for turn, _ in waiting],
            "waiting": [row for _, row in waiting],
        }

    def register_hooks(self, accelerator, done_steps: Callable[[], int]) -> None:
        """Let checkpoints hold each process's reading as it stood after `done_steps()` steps."""
        accelerator.register_save_state_pre_hook(lambda _, __, folder: self.save(Path(folder), done_steps()))
        accelerator.register_load_state_pre_hook(lambda _, folder: self.load(Path(folder)))

    def save(self, folder: Path, step: int) -> None:
        state = dict(next(state for number, state, _ in self._recent if number == step))
        if rows := state.pop("waiting"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self._file(folder, "parquet"))
        self._file(folder, "json").write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        state = json.loads(self._file(folder, "json").read_text(encoding="utf-8"))
        self.epoch, self._begin = state["epoch"], state["stream"]
        if self._begin:
            self.stream.load_state_dict(self._begin)
        rows = pyarrow.parquet.read_table(self._file(folder, "parquet")).to_pylist() if state["waiting_epochs"] else []
        for row, epoch in zip(rows, state["waiting_epochs"], strict=True):
            self._add(row, epoch)

    def _file(self, folder: Path, suffix: str) -> Path:
        return folder / f"stream-{self.rank}.{suffix}"


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

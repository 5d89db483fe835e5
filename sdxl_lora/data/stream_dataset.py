"""The pictures and steps of a training from a stream: what ImageDataset, a LatentCache and Batches are for others.

Pictures of one size wait until they fill a micro-batch; those of the next steps are decoded meanwhile. A checkpoint
holds where the reading stands and what waits, so that the same number of processes goes on with the same pictures.
Nothing is kept on the disk: latents are computed each time. What is random for an image is keyed by its content.
"""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import torch
from datasets.distributed import split_dataset_by_node

from sdxl_lora.data.image_dataset import Example, ImageDataset
from sdxl_lora.data.stream_reader import Place, shuffled_rows
from sdxl_lora.models.vae import VaeEncoder, encoded
from sdxl_lora.rng import SampleKey

STEPS_AHEAD = 2  # their pictures are decoded while others are trained on
STEPS_AT_HAND = STEPS_AHEAD + 2  # of these the pictures themselves are there
STEPS_REMEMBERED = 256  # more than lie between reading a step's pictures and saving the step, or telling of it
DECODERS = 4  # a picture takes 50 ms, a step on a fast GPU as little for each


class Rows(list):
    """Rows in memory, with as much of a dataset's manners as ImageDataset asks for."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def cast_column(self, *_) -> "Rows":
        return self

    def select_columns(self, names: list[str]) -> "Rows":
        return Rows({key: value for key, value in row.items() if key in names} for row in self)

    @property
    def features(self) -> dict:
        return {}  # nothing in them is decoded

    def remove_columns(self, name: str) -> "Rows":
        return Rows({key: value for key, value in row.items() if key != name} for row in self)


class StreamDataset:
    """Examples and latents of the images at hand, as ImageDataset and LatentCache have them, by keys.

    Args:
        open_rows: ImageDataset of Rows.
        vae_key: see cache.weights_key and key_in.
        is_flipped: whether a sample shows its image mirrored.
    """

    def __init__(
        self,
        open_rows: Callable[[Rows], ImageDataset],
        encode: VaeEncoder,
        vae_key: str,
        is_flipped: Callable[[SampleKey], bool],
    ):
        self.open_rows, self.encode, self.vae_key, self.is_flipped = open_rows, encode, vae_key, is_flipped
        self._decoders = ThreadPoolExecutor(DECODERS)
        self._images: dict[str, ImageDataset] = {}
        self._decoded: dict[tuple[str, bool], Future] = {}
        self._examples: dict[str, Example] = {}

    def add(self, row: dict) -> Example:
        images = self.open_rows(Rows([row]))
        example = images.examples[0]
        self._images[example.key], self._examples[example.key] = images, example
        return example

    def decode(self, sample: SampleKey) -> None:
        """Begin with it, for `read` to find."""
        key, flip = sample.example, self.is_flipped(sample)
        self._decoded[key, flip] = self._decoders.submit(self._images[key].load, 0, flip)

    def keep_only(self, at_hand: set[str], remembered: set[str]) -> None:
        """Forget all other pictures, and the examples of all others."""
        self._images = {key: self._images[key] for key in at_hand}
        self._decoded = {(key, flip): record for (key, flip), record in self._decoded.items() if key in at_hand}
        self._examples = {key: self._examples[key] for key in at_hand | remembered}

    def __getitem__(self, key: str) -> Example:
        return self._examples[key]

    def __iter__(self) -> Iterator[Example]:
        return iter(list(self._examples.values()))

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, key: str, flip: bool = False) -> dict[str, torch.Tensor]:
        """See LatentCache.

        Raises:
            DataError: the picture cannot be decoded.
            NonFiniteError: the VAE gives NaN or infinity.
        """
        return encoded(self.encode, self._decoded[key, flip].result(), self[key].name)


class StreamSampler:
    """The steps of a training from a stream; what Batches is for pictures that are all known.

    A step has `images_per_step` places, as `batches.share` deals them out; at those of other processes it has None.

    Args:
        block_size: see `shuffled_rows`.
    """

    images, members = 0, ()  # nobody knows how many pictures there are, and of which sizes

    def __init__(
        self,
        stream: datasets.IterableDataset,
        images: StreamDataset,
        image_column: str,
        caption_column: str,
        batch_size: int,
        micro_steps: int,
        rank: int,
        world_size: int,
        block_size: int,
        seed: int,
    ):
        self.files = stream.num_shards
        self.stream, self.examples = split_dataset_by_node(stream, rank, world_size), images
        self.columns, self.batch_size, self.micro_steps = (image_column, caption_column), batch_size, micro_steps
        self.rank, self.world_size, self.block_size, self.seed = rank, world_size, block_size, seed
        self.waiting: dict[tuple, list[tuple[SampleKey, dict]]] = defaultdict(list)
        self.place = Place()
        self._recent: deque[tuple[int, dict, list[SampleKey]]] = deque(maxlen=STEPS_REMEMBERED)

    @property
    def key(self) -> str:
        """Return what a resumed run must have in common with the run before."""
        read = f"a stream of {self.files} files, read by {self.world_size} processes"
        return f"{read}, {self.block_size} pictures shuffled at a time"

    def passes(self, step: int) -> float:
        return 0.0

    def epoch_of(self, step: int) -> int:
        return 0

    def from_step(self, first: int) -> Iterator[tuple[int, Sequence[SampleKey | None]]]:
        """(0, samples) of step `first`, where the reading stands, and of every later one."""
        steps = self._steps(first)
        coming = deque(islice(steps, STEPS_AHEAD))
        for samples in steps:
            coming.append(samples)
            yield 0, coming.popleft()

    def _steps(self, step: int) -> Iterator[list[SampleKey | None]]:
        """The samples of each step, whose images are being decoded."""
        rows = shuffled_rows(self.stream, self.place, self.columns, self.block_size, self.seed)
        self._recent.append((step, self._state(), []))
        while True:
            samples: list[SampleKey | None] = [None] * (self.batch_size * self.micro_steps * self.world_size)
            for micro_step in range(self.micro_steps):
                place = (micro_step * self.world_size + self.rank) * self.batch_size
                samples[place : place + self.batch_size] = self._micro_batch(rows)
            step, own = step + 1, [sample for sample in samples if sample]
            self._recent.append((step, self._state(), own))
            self._forget()
            for sample in own:
                self.examples.decode(sample)
            yield samples

    def _forget(self) -> None:
        steps = [{sample.example for sample in of_step} for _, _, of_step in self._recent]
        waiting = {sample.example for of_size in self.waiting.values() for sample, _ in of_size}
        self.examples.keep_only(waiting.union(*steps[-STEPS_AT_HAND:]), set().union(*steps))

    def _micro_batch(self, rows: Iterator[tuple[dict, Place]]) -> list[SampleKey]:
        while True:
            row, self.place = next(rows)
            if batch := self._add(row, self.place.epoch):
                return batch

    def _add(self, row: dict, epoch: int) -> list[SampleKey]:
        """Let a picture wait for others of its size; those that fill a micro-batch with it are returned."""
        example = self.examples.add(row)
        waiting = self.waiting[example.target_size]
        waiting.append((SampleKey(example.key, epoch), row))
        if len(waiting) < self.batch_size:
            return []
        del self.waiting[example.target_size]
        return [sample for sample, _ in waiting]

    def _state(self) -> dict:
        waiting = [item for of_size in self.waiting.values() for item in of_size]
        return {
            "place": asdict(self.place),
            "waiting_epochs": [sample.epoch for sample, _ in waiting],
            "waiting": [row for _, row in waiting],
        }

    def save(self, folder: Path, step: int) -> None:
        state = dict(next(state for number, state, _ in self._recent if number == step))
        if rows := state.pop("waiting"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self._file(folder, "parquet"))
        self._file(folder, "json").write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        state = json.loads(self._file(folder, "json").read_text(encoding="utf-8"))
        self.place = Place(**state["place"])
        rows = pyarrow.parquet.read_table(self._file(folder, "parquet")).to_pylist() if state["waiting_epochs"] else []
        for row, epoch in zip(rows, state["waiting_epochs"], strict=True):
            self._add(row, epoch)

    def _file(self, folder: Path, suffix: str) -> Path:
        return folder / f"stream-{self.rank}.{suffix}"

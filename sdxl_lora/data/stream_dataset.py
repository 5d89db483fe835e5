"""Images and steps of a training on a stream, in place of ImageDataset, LatentCache and BucketSampler.

Images of one size wait until they fill a micro-batch; those of the next steps are decoded meanwhile. A checkpoint
holds the stream's position and the waiting images, so that the same number of processes continues with the same
images. Nothing is stored on disk: latents are computed each time. Random draws for an image are keyed by its content.
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

STEPS_AHEAD = 2  # decoded during training on earlier ones
STEPS_AT_HAND = STEPS_AHEAD + 2  # steps whose images are in memory
STEPS_REMEMBERED = 256  # more than pass between reading a step's images and saving or reporting the step
DECODERS = 4  # decoding takes 50 ms per image, as little as a step on a fast GPU


class Rows(list):
    """Rows in memory, with the parts of a dataset's interface that ImageDataset uses."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def cast_column(self, *_) -> "Rows":
        return self

    def select_columns(self, names: list[str]) -> "Rows":
        return Rows({key: value for key, value in row.items() if key in names} for row in self)

    @property
    def features(self) -> dict:
        return {}  # nothing is decoded

    def remove_columns(self, name: str) -> "Rows":
        return Rows({key: value for key, value in row.items() if key != name} for row in self)


class StreamDataset:
    """Examples and latents of the images at hand by key, like ImageDataset and LatentCache.

    Args:
        open_rows: builds an ImageDataset from Rows.
        vae_key: see weights_key and key_in in cache/fill.py.
        is_flipped: whether a sample's image is mirrored.
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
        """Start decoding a sample's image for `read`."""
        key, flip = sample.example, self.is_flipped(sample)
        self._decoded[key, flip] = self._decoders.submit(self._images[key].load, 0, flip)

    def keep_only(self, at_hand: set[str], remembered: set[str]) -> None:
        """Forget all images that are not at hand and all examples that are neither at hand nor remembered."""
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
        """Return an image's latents, see LatentCache.

        Raises:
            DataError: the image cannot be decoded.
            NonFiniteError: the VAE gives NaN or infinity.
        """
        return encoded(self.encode, self._decoded[key, flip].result(), self[key].name)


class StreamSampler:
    """The steps of a training on a stream, in place of BucketSampler.

    The places of a step are divided as in `split_step`; those of other processes hold None.

    Args:
        block_size: see `shuffled_rows`.
    """

    images, members = 0, ()  # the number of images and their sizes are unknown

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
        """Return the facts about the stream that a resumed run must share."""
        read = f"a stream of {self.files} files, read by {self.world_size} processes"
        return f"{read}, {self.block_size} images shuffled at a time"

    def passes(self, step: int) -> float:
        return 0.0

    def epoch_of(self, step: int) -> int:
        return 0

    def from_step(self, first: int) -> Iterator[tuple[int, Sequence[SampleKey | None]]]:
        """Yield (0, samples) of step `first`, at the current position, and later."""
        steps = self._steps(first)
        coming = deque(islice(steps, STEPS_AHEAD))
        for samples in steps:
            coming.append(samples)
            yield 0, coming.popleft()

    def _steps(self, step: int) -> Iterator[list[SampleKey | None]]:
        """Yield the samples of each step once their images are being decoded."""
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
        """Queue an image with others of its size; return the samples of a micro-batch once it is full."""
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

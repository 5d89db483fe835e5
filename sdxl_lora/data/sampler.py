"""Sampling order, a pure function of the seed, the epoch, the process and the number of processes.

A step trains on `images_per_step` images of one bucket, however many processes and micro-steps share them. Each
bucket is one endless row of shuffled passes, cut into steps: an incomplete step waits for the next epoch, and after
the last epoch a shorter step takes the rest. So every image is seen once per pass, none is lost or repeated, and
splitting the work differently changes nothing. Images may be passed more or less often than once per epoch. Knows no
tensors.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterator, Sequence
from fractions import Fraction
from typing import Protocol, TypeVar

from sdxl_lora.rng import SampleKey, keyed_seed

Item = TypeVar("Item")


class Sampler(Protocol):
    """The steps of a training.

    Attributes:
        images: number of images, 0 if unknown; members: their sizes.
    """

    @property
    def images(self) -> int: ...

    @property
    def members(self) -> Collection: ...

    def epoch_of(self, step: int) -> int: ...

    def passes(self, step: int) -> float: ...

    def from_step(self, first: int) -> Iterator[tuple[int, Sequence[SampleKey | None]]]:
        """Yield (epoch, samples) of step `first` and later; None for samples that only another process knows."""


class BucketSampler:
    """The steps of a training over known images.

    Args:
        buckets: for each image the property that all images of a step share, e.g. its size; None to skip the image.
        images_per_step: train_batch_size x gradient_accumulation_steps x processes.
        num_epochs: passes over every image, or None for no end.
        repeats: passes over each image per epoch, not necessarily whole; once by default.
    """

    def __init__(
        self,
        buckets: Sequence[Hashable],
        images_per_step: int,
        seed: int,
        num_epochs: int | None,
        repeats: Sequence[Fraction | int] | None = None,
    ):
        self.images_per_step, self.seed, self.num_epochs = images_per_step, seed, num_epochs
        self.members: dict[Hashable, dict[Fraction | int, list[int]]] = {}  # by bucket and repeats
        for example, bucket in enumerate(buckets):
            if bucket is not None:
                repeat = 1 if repeats is None else repeats[example]
                self.members.setdefault(bucket, {}).setdefault(repeat, []).append(example)
        rows = [(repeat, members) for rows in self.members.values() for repeat, members in rows.items()]
        self.images = sum(len(members) for _, members in rows)
        self.samples_per_epoch = sum(repeat * len(members) for repeat, members in rows)

    def first_step(self, epoch: int) -> int:
        """Steps before `epoch`. For a bucket of n images, epoch e ends with step floor((e + 1) n / images_per_step)."""
        steps = sum(self._samples_before(bucket, epoch) // self.images_per_step for bucket in self.members)
        return steps + (self._leftover_steps() if epoch == self.num_epochs else 0)

    def _leftover_steps(self) -> int:
        end = self.num_epochs
        return (
            sum(self._samples_before(bucket, end) % self.images_per_step > 0 for bucket in self.members) if end else 0
        )

    def _samples_before(self, bucket: Hashable, epoch: int) -> int:
        return sum(self._row_before(bucket, repeat, epoch) for repeat in self.members[bucket])

    def _row_before(self, bucket: Hashable, repeat: Fraction | int, epoch: int) -> int:
        """Return the number of samples before `epoch` from the images of one bucket with the same repeats.

        The rest of a number of samples that is not whole waits for a later epoch. Its phase is drawn per bucket;
        otherwise small buckets would all come late.
        """
        begin = 0 if repeat == int(repeat) else Fraction(keyed_seed(self.seed, "repeats", bucket, repeat), 2**63)
        return math.floor(epoch * repeat * len(self.members[bucket][repeat]) + begin)

    def epoch_of(self, step: int) -> int:
        """Return the epoch of step `step`, which is also the number of epochs completed before it."""
        epoch = int(step * self.images_per_step // self.samples_per_epoch)
        if self.num_epochs is not None:
            epoch = min(epoch, self.num_epochs)
        while epoch and self.first_step(epoch) > step:
            epoch -= 1
        while epoch != self.num_epochs and self.first_step(epoch + 1) <= step:
            epoch += 1
        return epoch

    def passes(self, step: int) -> float:
        """Return the number of epochs that the images of the steps before `step` amount to."""
        passes = float(step * self.images_per_step / self.samples_per_epoch)
        return round(min(passes, self.num_epochs or passes), 3)

    def epoch(self, epoch: int) -> list[list[SampleKey]]:
        """Return the steps of one epoch, each a list of at most `images_per_step` samples of one bucket."""
        size, last = self.images_per_step, epoch + 1 == self.num_epochs
        steps = []
        for bucket in self.members:
            begin = self._samples_before(bucket, epoch) // size * size
            end = self._samples_before(bucket, epoch + 1)
            row = self._samples(bucket, begin, end if last else end // size * size, epoch)
            steps += [row[i : i + size] for i in range(0, len(row), size)]
        random.Random(keyed_seed(self.seed, "steps", epoch)).shuffle(steps)
        return steps

    def _samples(self, bucket: Hashable, begin: int, end: int, epoch: int) -> list[SampleKey]:
        """Return places `begin` to `end` of a bucket's endless row; `begin` lies in `epoch` or an earlier one."""
        epoch = bisect_right(range(epoch + 1), begin, key=lambda e: self._samples_before(bucket, e)) - 1
        samples: list[SampleKey] = []
        skipped = self._samples_before(bucket, epoch)
        while skipped + len(samples) < end:
            samples += self._samples_of_epoch(bucket, epoch)
            epoch += 1
        return samples[begin - skipped : end - skipped]

    def _samples_of_epoch(self, bucket: Hashable, epoch: int) -> list[SampleKey]:
        """Return an epoch of a bucket: whole shuffled passes or parts of them, with different repeats mixed."""
        samples: list[SampleKey] = []
        for repeat, members in self.members[bucket].items():
            begin, end = (self._row_before(bucket, repeat, e) for e in (epoch, epoch + 1))
            for number in range(begin // len(members), -(-end // len(members))):
                first = number * len(members)
                places = slice(max(begin - first, 0), end - first)
                samples += [SampleKey(example, number) for example in self._shuffled(bucket, repeat, number)[places]]
        if len(self.members[bucket]) > 1:
            random.Random(keyed_seed(self.seed, "mix", bucket, epoch)).shuffle(samples)
        return samples

    def _shuffled(self, bucket: Hashable, repeat: Fraction | int, number: int) -> list[int]:
        """Return pass `number` over a bucket's images of the same repeats."""
        order = list(self.members[bucket][repeat])
        key = (bucket, number) if repeat == 1 else (bucket, repeat, number)
        random.Random(keyed_seed(self.seed, "order", *key)).shuffle(order)
        return order

    def from_step(self, first: int) -> Iterator[tuple[int, list[SampleKey]]]:
        """Yield (epoch, samples) of step `first` and later."""
        epoch = self.epoch_of(first)
        skip = first - self.first_step(epoch)
        while epoch != self.num_epochs:
            for samples in self.epoch(epoch)[skip:]:
                yield epoch, samples
            epoch, skip = epoch + 1, 0


def split_step(samples: Sequence[Item], rank: int, world_size: int, micro_steps: int) -> list[list[Item]]:
    """Return the micro-batches of process `rank` in a step, split evenly, empty if there are too few samples."""
    parts = world_size * micro_steps
    bounds = [len(samples) * i // parts for i in range(parts + 1)]
    return [list(samples[bounds[i] : bounds[i + 1]]) for i in range(rank, parts, world_size)]

"""Who sees what, when: a pure function of the seed, the epoch, the process and the number of processes.

A step trains on `images_per_step` pictures of one bucket, whatever number of processes and micro-steps share them.
Each bucket is read as one endless row of shuffled passes, and steps are cut from that row: what does not fill a step
waits for the next epoch, and after the last epoch a shorter step takes the rest. So every picture is seen once per
pass, none is lost or repeated, and splitting the work differently changes nothing. Knows no tensors.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass


def keyed_seed(*key: int | str) -> int:
    """63 bits that only `key` decides: the seed of whatever is random about it."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Turn:
    """One picture's turn: its index in the dataset, and which of its passes this is."""

    example: int
    epoch: int


class Batches:
    """The steps of a training, cut from its pictures.

    Args:
        buckets: for each picture what it must share with the others of a step, e.g. its size; None for a picture that
            no step is to see.
        images_per_step: train_batch_size x gradient_accumulation_steps x processes.
        num_epochs: passes over every picture, or None for no end.
    """

    def __init__(self, buckets: Sequence[Hashable], images_per_step: int, seed: int, num_epochs: int | None):
        self.images_per_step, self.seed, self.num_epochs = images_per_step, seed, num_epochs
        self.members = defaultdict(list)
        for example, bucket in enumerate(buckets):
            if bucket is not None:
                self.members[bucket].append(example)
        self.pictures = sum(map(len, self.members.values()))

    def first_step(self, epoch: int) -> int:
        """Steps before `epoch`. Epoch e of a bucket of n pictures ends with step floor((e + 1) n / images_per_step)."""
        steps = sum(epoch * len(members) // self.images_per_step for members in self.members.values())
        return steps + (self._leftover_steps() if epoch == self.num_epochs else 0)

    def _leftover_steps(self) -> int:
        return sum(self.num_epochs * len(members) % self.images_per_step > 0 for members in self.members.values())

    def epoch_of(self, step: int) -> int:
        """The epoch that step `step` belongs to, which is also the number of epochs that are over before it."""
        epoch = step * self.images_per_step // self.pictures
        if self.num_epochs is not None:
            epoch = min(epoch, self.num_epochs)
        while epoch and self.first_step(epoch) > step:
            epoch -= 1
        while epoch != self.num_epochs and self.first_step(epoch + 1) <= step:
            epoch += 1
        return epoch

    def passes(self, step: int) -> float:
        """How often every picture was seen before step `step`, on average."""
        passes = step * self.images_per_step / self.pictures
        return round(min(passes, self.num_epochs or passes), 3)

    def epoch(self, epoch: int) -> list[list[Turn]]:
        """The steps of one epoch, each a list of at most `images_per_step` turns of one bucket."""
        size, last = self.images_per_step, epoch + 1 == self.num_epochs
        steps = []
        for bucket, members in self.members.items():
            begin = epoch * len(members) // size * size
            end = (epoch + 1) * len(members)
            row = [
                self._turn(bucket, members, position) for position in range(begin, end if last else end // size * size)
            ]
            steps += [row[i : i + size] for i in range(0, len(row), size)]
        random.Random(keyed_seed(self.seed, "steps", epoch)).shuffle(steps)
        return steps

    def _turn(self, bucket: Hashable, members: list[int], position: int) -> Turn:
        """Place `position` of a bucket's endless row."""
        epoch, place = divmod(position, len(members))
        return Turn(self._shuffled(bucket, epoch)[place], epoch)

    def _shuffled(self, bucket: Hashable, epoch: int) -> list[int]:
        key = (bucket, epoch)
        if getattr(self, "_last_key", None) != key:
            self._last_key, self._last = key, list(self.members[bucket])
            random.Random(keyed_seed(self.seed, "order", bucket, epoch)).shuffle(self._last)
        return self._last

    def from_step(self, first: int) -> Iterator[tuple[int, list[Turn]]]:
        """(epoch, turns) of step `first` and every later one."""
        epoch = self.epoch_of(first)
        skip = first - self.first_step(epoch)
        while epoch != self.num_epochs:
            for turns in self.epoch(epoch)[skip:]:
                yield epoch, turns
            epoch, skip = epoch + 1, 0


def share(turns: Sequence[Turn], rank: int, world: int, micro_steps: int) -> list[list[Turn]]:
    """What process `rank` of `world` does of a step: its micro-batches, as even as can be, empty where too few."""
    parts = world * micro_steps
    bounds = [len(turns) * i // parts for i in range(parts + 1)]
    return [list(turns[bounds[i] : bounds[i + 1]]) for i in range(rank, parts, world)]

"""Stateless randomness: seeds and generators keyed by (seed, stream, epoch, example)."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch


def keyed_seed(*key: Hashable) -> int:
    """Return a seed of 63 bits determined by `key` alone."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class SampleKey:
    """A sample: an image's index in the dataset and the number of the pass over it."""

    example: Any  # an index; in a stream a key
    epoch: int


def generator(seed: int, stream: str, sample: SampleKey) -> torch.Generator:
    return torch.Generator().manual_seed(keyed_seed(seed, stream, sample.epoch, sample.example))

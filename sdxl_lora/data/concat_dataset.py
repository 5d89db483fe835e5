"""Several datasets as one: their images concatenated, each with its dataset's repeats and trigger word."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from sdxl_lora.config.dataset_spec import DatasetEntry, repeats_of
from sdxl_lora.config.trigger_word import with_trigger_word
from sdxl_lora.data.image_dataset import Example, ImageDataset


class ConcatDataset:
    """Several ImageDatasets as one."""

    def __init__(self, parts: Sequence[ImageDataset], entries: Sequence[DatasetEntry]):
        self.parts = list(parts)
        self.starts = [0, *accumulate(len(part) for part in self.parts)]
        samples = [sum(example.repeats for example in part.examples) for part in self.parts]
        repeats = repeats_of(entries, samples)
        self.examples: list[Example] = [
            replace(
                example,
                caption=with_trigger_word(example.caption, entry.trigger_word),
                more_captions=tuple(with_trigger_word(one, entry.trigger_word) for one in example.more_captions),
                is_class_image=example.is_class_image or entry.is_class_images,
                repeats=repeat * example.repeats,
            )
            for part, entry, repeat in zip(self.parts, entries, repeats, strict=True)
            for example in part.examples
        ]

    @property
    def is_prepared(self) -> bool:
        """Return whether preprocess has sized the images of every part."""
        return all(part.is_prepared for part in self.parts)

    def __len__(self) -> int:
        return len(self.examples)

    def load(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        """See ImageDataset.load."""
        part = bisect_right(self.starts, index) - 1
        return self.parts[part].load(index - self.starts[part], flip)

"""Validation split: images held out of training."""

from collections.abc import Sequence

from sdxl_lora.data.image_dataset import Example
from sdxl_lora.errors import ConfigError
from sdxl_lora.rng import keyed_seed


def held_out(examples: Sequence[Example], share: float, seed: int) -> list[int]:
    """Return the indices of the held-out examples: about `share` of their sources, at least one.

    Crops and copies of one source stay together, or trained images would be measured. Class images always train.

    Raises:
        ConfigError: no source would be left to train on.
    """
    sources = {example.source for example in examples if not example.is_class_image}
    in_both = {example.source for example in examples if example.is_class_image}
    order = sorted(sources - in_both, key=lambda source: keyed_seed(seed, "validation", source))
    count = max(1, round(share * len(order)))
    if count >= len(order):
        raise ConfigError(f"validation_split {share} leaves nothing to train on: there are {len(order)} images")
    chosen = set(order[:count])
    return [index for index, example in enumerate(examples) if example.source in chosen]

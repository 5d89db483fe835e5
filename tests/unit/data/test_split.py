"""Held-out images: by their source, so that no step sees one of them."""

import pytest

from sdxl_lora.data.image_dataset import Example
from sdxl_lora.data.sampler import BucketSampler
from sdxl_lora.data.split import held_out
from sdxl_lora.errors import ConfigError


def examples_of(sources, class_images=()):
    return [Example(f"{i}.png", "", f"key {i}", (64, 64), s in class_images, s) for i, s in enumerate(sources)]


def test_no_source_is_on_both_sides():
    """Ten pictures, each with three crops; copies of the class images train."""
    sources = [f"source {number % 10}" for number in range(30)]
    for seed in range(20):
        examples = examples_of(sources)
        out = set(held_out(examples, 0.2, seed))
        assert len(out) == 6 and {sources[i] for i in out}.isdisjoint(sources[i] for i in range(30) if i not in out)
        batches = BucketSampler(
            [None if i in out else e.target_size for i, e in enumerate(examples)], 5, seed, num_epochs=3
        )
        seen = [sample.example for _, samples in batches.from_step(0) for sample in samples]
        assert out.isdisjoint(seen) and sorted(seen) == sorted(3 * [i for i in range(30) if i not in out])
        assert batches.images == 24
    classes = {"source 1", "source 2"}
    out = held_out(examples_of(sources, classes), 0.9, 0)
    assert {sources[i] for i in out}.isdisjoint(classes)


def test_a_new_picture_moves_few_others():
    before = {f"{i}" for i in range(100)}
    chosen = [
        {sources[i] for i in held_out(examples_of(sources), 0.2, 0)}
        for sources in (sorted(before), sorted(before | {"new"}))
    ]
    assert len(chosen[0] ^ chosen[1]) <= 2


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="leaves nothing to train on: there are 1 images"):
        held_out(examples_of(["a", "a"]), 0.1, 0)
    with pytest.raises(ConfigError, match="leaves nothing to train on"):
        held_out(examples_of(["a", "b"]), 0.9, 0)

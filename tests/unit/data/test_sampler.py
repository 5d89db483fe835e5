"""Order of samples: nothing lost, nothing repeated, whatever the split."""

import random
from collections import Counter
from fractions import Fraction

import pytest
import torch

from sdxl_lora.data.sampler import BucketSampler, split_step
from sdxl_lora.diffusion.noise import draw_flip, draw_latents, draw_noise, draw_timestep
from sdxl_lora.rng import SampleKey, keyed_seed

CASES = [(13, 4, 10, 2), (4, 8, 3, 1), (4, 8, 1, 2), (7, 1, 2, 3), (1, 16, 5, 1), (100, 6, 3, 7), (3, 2, 50, 3)]


def buckets_of(images, kinds):
    chance = random.Random(0)
    return [(64, 64 + 8 * chance.randrange(kinds)) for _ in range(images)]


@pytest.mark.parametrize("images, images_per_step, epochs, kinds", CASES)
def test_every_picture_is_seen_once_in_each_pass(images, images_per_step, epochs, kinds):
    buckets = buckets_of(images, kinds)
    batches = BucketSampler(buckets, images_per_step, seed=3, num_epochs=epochs)
    steps = [samples for _, samples in batches.from_step(0)]
    seen = Counter(sample for samples in steps for sample in samples)
    assert seen == Counter(SampleKey(example, epoch) for example in range(images) for epoch in range(epochs))
    for samples in steps:
        assert 1 <= len(samples) <= images_per_step
        assert len({buckets[sample.example] for sample in samples}) == 1
    short = sum(len(samples) < images_per_step for samples in steps)
    assert short <= len(set(buckets)), "only the last step of a bucket may be short"
    assert len(steps) == batches.first_step(epochs)


@pytest.mark.parametrize("images, images_per_step, epochs, kinds", CASES)
def test_starting_at_any_step_gives_the_same_rest(images, images_per_step, epochs, kinds):
    batches = BucketSampler(buckets_of(images, kinds), images_per_step, seed=3, num_epochs=epochs)
    steps = list(batches.from_step(0))
    for first in range(len(steps) + 1):
        fresh = BucketSampler(buckets_of(images, kinds), images_per_step, seed=3, num_epochs=epochs)
        assert list(fresh.from_step(first)) == steps[first:]
    assert [batches.epoch_of(step) for step in range(len(steps))] == [epoch for epoch, _ in steps]
    assert batches.epoch_of(len(steps)) == epochs


REPEATS = [Fraction(3), Fraction(1, 4), Fraction(5, 2), Fraction(1)]


@pytest.mark.parametrize("images_per_step, kinds", [(4, 1), (1, 3), (7, 5)])
def test_pictures_are_passed_as_often_as_their_repeats_say(images_per_step, kinds):
    """Of each number of repeats: every pass holds every picture once, and what is over comes in turn."""
    repeats = [repeat for repeat in REPEATS for _ in range(12)]
    buckets = buckets_of(len(repeats), kinds)
    batches = BucketSampler(buckets, images_per_step, 3, 8, repeats)
    steps = [samples for _, samples in batches.from_step(0)]
    assert len(steps) == batches.first_step(8) and batches.samples_per_epoch == 12 * sum(REPEATS)
    assert all(len({buckets[sample.example] for sample in samples}) == 1 for samples in steps)
    seen = Counter(sample for samples in steps for sample in samples)
    assert set(seen.values()) == {1}, "no turn twice: each has its own noise"
    for example, repeat in enumerate(repeats):
        passes = sorted(sample.epoch for sample in seen if sample.example == example)
        assert passes == list(range(len(passes))) and abs(len(passes) - 8 * repeat) <= 1
    split_step = Counter(repeats[sample.example] for sample in seen)
    for repeat in REPEATS:
        assert abs(split_step[repeat] - 8 * 12 * repeat) <= kinds
    for first in (0, 1, len(steps) // 2, len(steps) - 1, len(steps)):
        fresh = BucketSampler(buckets, images_per_step, 3, 8, repeats)
        assert [samples for _, samples in fresh.from_step(first)] == steps[first:]
    assert [batches.epoch_of(step) for step in range(len(steps))] == [epoch for epoch, _ in batches.from_step(0)]


def test_pictures_of_different_repeats_share_steps_and_one_repeat_each_changes_nothing():
    repeats = [Fraction(2)] * 10 + [Fraction(1)] * 10
    steps = [samples for _, samples in BucketSampler([0] * 20, 5, 0, 4, repeats).from_step(0)]
    mixed = sum(len({sample.example < 10 for sample in samples}) == 2 for samples in steps)
    assert len(steps) == 24 and mixed > 12
    once = [list(BucketSampler(buckets_of(9, 2), 2, 1, 5, r).from_step(0)) for r in (None, [1] * 9, [Fraction(1)] * 9)]
    assert once[0] == once[1] == once[2]


def test_small_buckets_of_few_repeats_do_not_all_come_late():
    """A hundred sizes of one picture each, half as often as the epoch: half of them come in the first."""
    batches = BucketSampler(list(range(100)), 1, 0, None, [Fraction(1, 2)] * 100)
    first, second = ({sample.example for samples in batches.epoch(epoch) for sample in samples} for epoch in (0, 1))
    assert 35 < len(first) < 65 and first | second == set(range(100)) and not first & second


def test_without_end_an_epoch_carries_its_rest_into_the_next():
    batches = BucketSampler([0] * 5, images_per_step=4, seed=0, num_epochs=None)
    rows = batches.from_step(0)
    samples = [sample for _ in range(5) for sample in next(rows)[1]]
    assert Counter(samples) == Counter(SampleKey(example, epoch) for example in range(5) for epoch in range(4))


def test_order_changes_with_epoch_and_seed_only():
    def order(seed, epoch):
        return [sample.example for samples in BucketSampler([0] * 20, 1, seed, 9).epoch(epoch) for sample in samples]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)


@pytest.mark.parametrize("samples", range(1, 9))
def test_any_split_shares_out_the_same_step(samples):
    step = [SampleKey(example, 0) for example in range(samples)]
    for world_size, micro_steps in [(1, 1), (1, 4), (2, 2), (4, 1), (2, 1)]:
        parts = [part for rank in range(world_size) for part in split_step(step, rank, world_size, micro_steps)]
        assert len(parts) == world_size * micro_steps
        assert Counter(sample for part in parts for sample in part) == Counter(step)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_draws_depend_on_seed_epoch_and_example_and_nothing_else():
    sample, others = SampleKey(5, 2), [SampleKey(5, 3), SampleKey(6, 2)]
    noise = draw_noise(7, sample, (4, 8, 8))
    torch.manual_seed(123)
    assert torch.equal(noise, draw_noise(7, sample, (4, 8, 8)))
    for seed, other in [(8, sample), *((7, other) for other in others)]:
        assert not torch.equal(noise, draw_noise(seed, other, (4, 8, 8)))
        assert keyed_seed(7, "noise", sample.epoch, sample.example) != keyed_seed(
            seed, "noise", other.epoch, other.example
        )
    mean, std = torch.full((4, 8, 8), 3.0), torch.full((4, 8, 8), 0.5)
    posterior = (draw_latents(7, sample, mean, std) - mean) / std
    assert not torch.allclose(posterior, noise), "the VAE's draw has a stream of its own"


def test_draws_have_their_distributions():
    samples = [SampleKey(example, epoch) for example in range(200) for epoch in range(20)]
    timesteps = torch.tensor([draw_timestep(0, sample, 1000) for sample in samples], dtype=torch.float64)
    assert 0 <= timesteps.min() < 10 and 989 < timesteps.max() <= 999
    assert abs(timesteps.mean() - 499.5) < 4 * 1000 / 12**0.5 / len(samples) ** 0.5
    flips = sum(draw_flip(0, sample) for sample in samples) / len(samples)
    assert abs(flips - 0.5) < 4 * 0.5 / len(samples) ** 0.5
    noise = torch.stack([draw_noise(0, sample, (4, 8, 8)) for sample in samples[:200]])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02

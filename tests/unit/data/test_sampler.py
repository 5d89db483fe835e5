"""Who sees what, when: nothing lost, nothing repeated, whatever the split."""

import random
from collections import Counter
from fractions import Fraction

import pytest
import torch

from sdxl_lora.data.sampler import Batches, share
from sdxl_lora.diffusion.noise import draw_flip, draw_latents, draw_noise, draw_timestep
from sdxl_lora.rng import Turn, keyed_seed

CASES = [(13, 4, 10, 2), (4, 8, 3, 1), (4, 8, 1, 2), (7, 1, 2, 3), (1, 16, 5, 1), (100, 6, 3, 7), (3, 2, 50, 3)]


def buckets_of(pictures, kinds):
    chance = random.Random(0)
    return [(64, 64 + 8 * chance.randrange(kinds)) for _ in range(pictures)]


@pytest.mark.parametrize("pictures, images_per_step, epochs, kinds", CASES)
def test_every_picture_is_seen_once_in_each_pass(pictures, images_per_step, epochs, kinds):
    buckets = buckets_of(pictures, kinds)
    batches = Batches(buckets, images_per_step, seed=3, num_epochs=epochs)
    steps = [turns for _, turns in batches.from_step(0)]
    seen = Counter(turn for turns in steps for turn in turns)
    assert seen == Counter(Turn(example, epoch) for example in range(pictures) for epoch in range(epochs))
    for turns in steps:
        assert 1 <= len(turns) <= images_per_step
        assert len({buckets[turn.example] for turn in turns}) == 1
    short = sum(len(turns) < images_per_step for turns in steps)
    assert short <= len(set(buckets)), "only the last step of a bucket may be short"
    assert len(steps) == batches.first_step(epochs)


@pytest.mark.parametrize("pictures, images_per_step, epochs, kinds", CASES)
def test_starting_at_any_step_gives_the_same_rest(pictures, images_per_step, epochs, kinds):
    batches = Batches(buckets_of(pictures, kinds), images_per_step, seed=3, num_epochs=epochs)
    steps = list(batches.from_step(0))
    for first in range(len(steps) + 1):
        fresh = Batches(buckets_of(pictures, kinds), images_per_step, seed=3, num_epochs=epochs)
        assert list(fresh.from_step(first)) == steps[first:]
    assert [batches.epoch_of(step) for step in range(len(steps))] == [epoch for epoch, _ in steps]
    assert batches.epoch_of(len(steps)) == epochs


REPEATS = [Fraction(3), Fraction(1, 4), Fraction(5, 2), Fraction(1)]


@pytest.mark.parametrize("images_per_step, kinds", [(4, 1), (1, 3), (7, 5)])
def test_pictures_are_passed_as_often_as_their_repeats_say(images_per_step, kinds):
    """Of each number of repeats: every pass holds every picture once, and what is over comes in turn."""
    repeats = [repeat for repeat in REPEATS for _ in range(12)]
    buckets = buckets_of(len(repeats), kinds)
    batches = Batches(buckets, images_per_step, 3, 8, repeats)
    steps = [turns for _, turns in batches.from_step(0)]
    assert len(steps) == batches.first_step(8) and batches.turns_per_epoch == 12 * sum(REPEATS)
    assert all(len({buckets[turn.example] for turn in turns}) == 1 for turns in steps)
    seen = Counter(turn for turns in steps for turn in turns)
    assert set(seen.values()) == {1}, "no turn twice: each has its own noise"
    for example, repeat in enumerate(repeats):
        passes = sorted(turn.epoch for turn in seen if turn.example == example)
        assert passes == list(range(len(passes))) and abs(len(passes) - 8 * repeat) <= 1
    share = Counter(repeats[turn.example] for turn in seen)
    for repeat in REPEATS:
        assert abs(share[repeat] - 8 * 12 * repeat) <= kinds
    for first in (0, 1, len(steps) // 2, len(steps) - 1, len(steps)):
        fresh = Batches(buckets, images_per_step, 3, 8, repeats)
        assert [turns for _, turns in fresh.from_step(first)] == steps[first:]
    assert [batches.epoch_of(step) for step in range(len(steps))] == [epoch for epoch, _ in batches.from_step(0)]


def test_pictures_of_different_repeats_share_steps_and_one_repeat_each_changes_nothing():
    repeats = [Fraction(2)] * 10 + [Fraction(1)] * 10
    steps = [turns for _, turns in Batches([0] * 20, 5, 0, 4, repeats).from_step(0)]
    mixed = sum(len({turn.example < 10 for turn in turns}) == 2 for turns in steps)
    assert len(steps) == 24 and mixed > 12
    once = [list(Batches(buckets_of(9, 2), 2, 1, 5, r).from_step(0)) for r in (None, [1] * 9, [Fraction(1)] * 9)]
    assert once[0] == once[1] == once[2]


def test_small_buckets_of_few_repeats_do_not_all_come_late():
    """A hundred sizes of one picture each, half as often as the epoch: half of them come in the first."""
    batches = Batches(list(range(100)), 1, 0, None, [Fraction(1, 2)] * 100)
    first, second = ({turn.example for turns in batches.epoch(epoch) for turn in turns} for epoch in (0, 1))
    assert 35 < len(first) < 65 and first | second == set(range(100)) and not first & second


def test_without_end_an_epoch_carries_its_rest_into_the_next():
    batches = Batches([0] * 5, images_per_step=4, seed=0, num_epochs=None)
    rows = batches.from_step(0)
    turns = [turn for _ in range(5) for turn in next(rows)[1]]
    assert Counter(turns) == Counter(Turn(example, epoch) for example in range(5) for epoch in range(4))


def test_order_changes_with_epoch_and_seed_only():
    def order(seed, epoch):
        return [turn.example for turns in Batches([0] * 20, 1, seed, 9).epoch(epoch) for turn in turns]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)


@pytest.mark.parametrize("turns", range(1, 9))
def test_any_split_shares_out_the_same_step(turns):
    step = [Turn(example, 0) for example in range(turns)]
    for world, micro_steps in [(1, 1), (1, 4), (2, 2), (4, 1), (2, 1)]:
        parts = [part for rank in range(world) for part in share(step, rank, world, micro_steps)]
        assert len(parts) == world * micro_steps
        assert Counter(turn for part in parts for turn in part) == Counter(step)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_draws_depend_on_seed_epoch_and_example_and_nothing_else():
    turn, others = Turn(5, 2), [Turn(5, 3), Turn(6, 2)]
    noise = draw_noise(7, turn, (4, 8, 8))
    torch.manual_seed(123)
    assert torch.equal(noise, draw_noise(7, turn, (4, 8, 8)))
    for seed, other in [(8, turn), *((7, other) for other in others)]:
        assert not torch.equal(noise, draw_noise(seed, other, (4, 8, 8)))
        assert keyed_seed(7, "noise", turn.epoch, turn.example) != keyed_seed(seed, "noise", other.epoch, other.example)
    mean, std = torch.full((4, 8, 8), 3.0), torch.full((4, 8, 8), 0.5)
    posterior = (draw_latents(7, turn, mean, std) - mean) / std
    assert not torch.allclose(posterior, noise), "the VAE's draw has a stream of its own"


def test_draws_have_their_distributions():
    turns = [Turn(example, epoch) for example in range(200) for epoch in range(20)]
    timesteps = torch.tensor([draw_timestep(0, turn, 1000) for turn in turns], dtype=torch.float64)
    assert 0 <= timesteps.min() < 10 and 989 < timesteps.max() <= 999
    assert abs(timesteps.mean() - 499.5) < 4 * 1000 / 12**0.5 / len(turns) ** 0.5
    flips = sum(draw_flip(0, turn) for turn in turns) / len(turns)
    assert abs(flips - 0.5) < 4 * 0.5 / len(turns) ** 0.5
    noise = torch.stack([draw_noise(0, turn, (4, 8, 8)) for turn in turns[:200]])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02

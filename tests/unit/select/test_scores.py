"""The shares and the recommendation, by hand on made embeddings."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sdxl_lora.select.choice import BASE, Cell
from sdxl_lora.select.images import thumbnails
from sdxl_lora.select.scores import Measured, Scale, Score, finalists, recommend

CALLS_UP = (True, True, False, False)
PROMPTS = (0, 0, 1, 1)


def at(*degrees):
    """Unit vectors in the plane, whose cosines are those of the differences of their angles."""
    radians = [math.radians(angle) for angle in degrees]
    return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in radians])


def cosine(degrees):
    return math.cos(math.radians(degrees))


def images_of(*degrees, match=None, thumbnail=None):
    """Two images with the trigger word and two without, at these angles."""
    small = torch.zeros(4, 3) if thumbnail is None else thumbnail
    return Measured(at(*degrees), match, small, PROMPTS, CALLS_UP)


def two_images_of_a_prompt(calls_up):
    return Measured(at(90, 90), None, torch.zeros(2, 3), (0, 0), (calls_up, calls_up))


TRAINING = at(0, 10)
THUMBNAILS = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


def test_shares_go_from_the_base_to_the_training_images():
    scale = Scale(TRAINING, THUMBNAILS, images_of(90, 90, 95, 95))
    score = scale.score(Cell(1.0, 500), images_of(40, 40, 90, 90))
    base, among = (cosine(90) + cosine(80)) / 2, cosine(10)
    assert score.likeness == pytest.approx((cosine(40) + cosine(30)) / 2)
    assert score.learned == pytest.approx((score.likeness - base) / (among - base))
    without = (cosine(95) + cosine(85)) / 2
    assert score.leak == pytest.approx((base - without) / (among - without))
    assert score.prompt_lost is None and score.total == pytest.approx(score.learned - score.leak)
    assert scale.left_out == ["prompt lost: no CLIP model was given"]


def test_the_base_scores_nothing_and_being_more_alike_than_the_training_images_is_no_merit():
    drawn = images_of(90, 80, 95, 85)
    scale = Scale(TRAINING, THUMBNAILS, drawn)
    of_base = scale.score(BASE, drawn)
    assert of_base.learned == pytest.approx(0, abs=1e-6) and of_base.leak == pytest.approx(0, abs=1e-6)
    assert scale.score(Cell(1.0, 500), images_of(5, 5, 95, 85)).learned == 1.0
    assert scale.score(Cell(1.0, 500), images_of(5, 5, 120, 120)).leak == 0.0, "less alike is no leak"


def test_prompts_for_other_subjects_do_not_hide_a_leak():
    """The leak of prompts without their trigger word counts in full, and that of other subjects on top of it."""
    prompts, calls_up = (0, 0, 1, 2, 3), (True, False, False, False, False)

    def drawn(*degrees):
        return Measured(at(*degrees), None, torch.zeros(5, 3), prompts, calls_up)

    scale = Scale(TRAINING, THUMBNAILS, drawn(90, 95, 100, 100, 100))

    def share(now, before):
        ends = [(cosine(angle) + cosine(angle - 10)) / 2 for angle in (now, before)]
        return (ends[0] - ends[1]) / (cosine(10) - ends[1])

    alone = scale.score(Cell(1.0, 1), drawn(40, 60, 100, 100, 100))
    assert alone.leak == pytest.approx(share(60, 95))
    both = scale.score(Cell(1.0, 1), drawn(40, 60, 90, 90, 90))
    assert both.leak == pytest.approx(share(60, 95) + share(90, 100))
    assert scale.score(Cell(1.0, 1), drawn(40, 60, 110, 110, 110)).leak == pytest.approx(alone.leak)


def test_variety_is_between_the_seeds_of_a_prompt_with_the_trigger_word():
    scale = Scale(TRAINING, THUMBNAILS, images_of(90, 90, 95, 95))
    assert scale.score(Cell(1.0, 1), images_of(10, 40, 0, 90)).variety == pytest.approx(1 - cosine(30))
    one_each = Measured(at(10, 40), None, torch.zeros(2, 3), (0, 1), (True, True))
    assert scale.score(Cell(1.0, 1), one_each).variety is None


def test_a_lost_prompt_is_measured_between_the_own_and_the_other_prompts():
    base_match = torch.tensor([[0.4, 0.1], [0.4, 0.1], [0.1, 0.4], [0.1, 0.4]])
    scale = Scale(TRAINING, THUMBNAILS, images_of(90, 90, 95, 95, match=base_match))
    half = torch.tensor([[0.25, 0.2], [0.25, 0.2], [0.2, 0.25], [0.2, 0.25]])
    assert scale.score(Cell(1.0, 1), images_of(40, 40, 95, 95, match=half)).prompt_lost == pytest.approx(0.5)
    better, none = base_match + 0.1, base_match - 0.9
    assert scale.score(Cell(1.0, 1), images_of(40, 40, 95, 95, match=better)).prompt_lost == 0.0
    assert scale.score(Cell(1.0, 1), images_of(40, 40, 95, 95, match=none)).prompt_lost == 1.0


def test_a_copy_is_named_and_has_learned_nothing():
    copied = torch.tensor([[0.99, 0.1, 0.0], [0.5, 0.5, 0.7], [0, 0, 1], [0, 0, 1.0]])
    scale = Scale(TRAINING, THUMBNAILS, images_of(90, 90, 95, 95))
    honest = scale.score(Cell(1.0, 1), images_of(40, 40, 95, 95))
    score = scale.score(Cell(1.0, 1), images_of(40, 40, 95, 95, thumbnail=copied))
    assert [(one.image, one.training_image) for one in score.copies] == [(0, 0)]
    assert score.nearest == score.copies[0] and score.nearest.correlation == pytest.approx(0.99)
    assert score.learned == pytest.approx(honest.learned / 2)

    alike = torch.nn.functional.normalize(torch.tensor([[1.0, 0.05, 0], [1.0, 0.0, 0.05], [1.0, 0, 0]]), dim=1)
    scale = Scale(at(0, 5, 10), alike, images_of(90, 90, 95, 95))
    copied = torch.tensor([[0.98, 0.1, 0.15], [0, 0, 1.0], [0, 0, 1], [0, 0, 1.0]])
    assert scale.score(Cell(1.0, 1), images_of(40, 40, 95, 95, thumbnail=copied)).copies == [], (
        "where the training images are as alike among themselves, likeness to one is no copy"
    )


def test_thumbnails_know_a_picture_again_and_tell_others_apart(photographs):
    images = [Image.open(path).convert("RGB") for path in sorted(photographs.iterdir())]
    small = thumbnails([*images, images[0].resize((200, 200)), ImageOps.invert(images[0]), Image.new("RGB", (9, 9))])
    correlation = (small @ small.T).numpy()
    assert correlation[0, 4] > 0.98 and correlation[0, 5] == pytest.approx(-1, abs=0.01)
    assert np.abs(correlation[6]).max() < 1e-6, "a single colour is like nothing"
    others = correlation[:4, :4][np.triu_indices(4, 1)]
    assert others.max() < 0.8


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (two_images_of_a_prompt(False), "learned: no prompt has the trigger word"),
        (two_images_of_a_prompt(True), "leak: no prompt is without a trigger word"),
        (images_of(0, 10, 90, 90), "learned: to this similarity model the base's images are as similar"),
        (images_of(90, 90, 90, 90, match=torch.full((4, 2), 0.2)), "prompt lost: to this CLIP model the base's"),
        (
            Measured(at(90), torch.ones(1, 1), torch.zeros(1, 3), (0,), (True,)),
            "prompt lost: there is only one prompt",
        ),
    ],
)
def test_a_scale_without_two_ends_is_left_out_and_said(base, words):
    scale = Scale(TRAINING, THUMBNAILS, base)
    assert any(one.startswith(words) for one in scale.left_out), scale.left_out
    score, name = scale.score(Cell(1.0, 1), base), words.split(":")[0].replace(" ", "_")
    assert getattr(score, name) is None
    assert (score.total is None) == (name == "learned")


def scored(**totals):
    """Scores by names such as s8_500: strength 0.8, step 500."""
    cells = {}
    for name, total in totals.items():
        strength, step = name.removeprefix("s").split("_")
        cell = Cell(int(strength) / 10, int(step))
        cells[cell] = Score(cell, learned=total)
    return {BASE: Score(BASE, learned=0.0)} | cells


def test_of_those_that_are_as_good_the_mildest_is_recommended():
    found = recommend(scored(s10_500=0.80, s8_500=0.796, s8_1000=0.799, s6_1000=0.7))
    assert found.cell == Cell(0.8, 500)
    assert "checkpoint-500 at strength 1 has 80 points" in found.reason and "within 0.5 points" in found.reason
    assert recommend(scored(s10_500=0.80, s8_500=0.78)).cell == Cell(1.0, 500)
    assert recommend(scored(s10_1000=0.8, s10_500=0.8)).cell == Cell(1.0, 500)


def test_finalists_are_the_best_that_are_known():
    scores = scored(s6_500=0.1, s8_500=0.5, s10_500=0.7, s12_500=0.2, s6_1000=0.6, s8_1000=None)
    assert finalists(scores) == (Cell(1.0, 500), Cell(0.6, 1000), Cell(0.8, 500), Cell(1.2, 500))
    assert finalists(scored(s6_500=None, s8_500=0.5)) == (Cell(0.8, 500),)


def test_leak_and_lost_prompts_count_against_what_was_learned():
    strong, mild = Cell(1.0, 500), Cell(0.6, 500)
    scores = {strong: Score(strong, 0.9, 0.3, 0.2), mild: Score(mild, 0.7, 0.1, 0.05)}
    found = recommend(scores)
    assert found.cell == mild
    assert found.reason == (
        "checkpoint-500 at strength 0.6: score 55 points (learned 70 %, leak 10 %, prompt lost 5 %)"
    )


def test_nothing_is_recommended_where_nothing_is_better_than_the_base_or_nothing_is_known():
    worse = Cell(1.0, 500)
    found = recommend({BASE: Score(BASE, 0.0), worse: Score(worse, 0.2, 0.3)})
    assert found.cell is None and "even the best, checkpoint-500 at strength 1, loses as much" in found.reason
    unknown = recommend({BASE: Score(BASE), worse: Score(worse, None, 0.3)})
    assert unknown.cell is None and "what was learned could not be measured" in unknown.reason

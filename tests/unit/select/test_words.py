"""Words that came along, counted by hand: unasked, and more frequent than for the base's images."""

import itertools

import pytest

from sdxl_lora.select.words import (
    Shown,
    asked_by,
    came_along,
    chance,
    singular,
    table,
    words_of_caption,
    words_of_tags,
)


def shown(caption, prompt="sks, a cat"):
    return Shown(words_of_caption(caption), asked_by(prompt))


def test_the_words_of_a_caption_are_those_that_say_something_and_their_pairs():
    said = words_of_caption("The image shows a Red sofa, with a cat on the brick-red floor.")
    assert said == {"red", "sofa", "red sofa", "cat", "brick-red", "floor", "brick-red floor"}
    assert words_of_caption("Un café à la crème") >= {"café", "crème"}
    assert words_of_tags("1girl, Long hair, , solo") == {"1girl", "long hair", "solo"}


def test_what_the_prompt_asks_for_does_not_count():
    image = shown("a cat on a red sofa", "sks, two cats, red light")
    assert image.was_asked("cat") and image.was_asked("red") and not image.was_asked("red sofa")
    assert [singular(word) for word in ("cats", "cat", "grass", "bus")] == ["cat", "cat", "grass", "bus"]


def test_a_planted_sofa_is_found_in_percent_and_a_word_of_both_is_not():
    with_trigger = [shown("a cat on a red sofa")] * 9 + [shown("a cat in grass")]
    base = [shown("a cat in grass")] * 9 + [shown("a cat on a red sofa")]
    without = [shown("a cat on a red sofa", "a cat")] * 5 + [shown("a cat", "a cat")] * 5
    base_without = [shown("a cat", "a cat")] * 10
    training = [words_of_caption("a red sofa")] * 3 + [words_of_caption("a lawn")]
    found = came_along(with_trigger, base, without, base_without, training)
    assert [one.word for one in found] == ["red sofa"], "neither sofa nor red beside it, nor the cat"
    (one,) = found
    assert (one.with_trigger, one.base) == (0.9, 0.1)
    assert (one.without_trigger, one.base_without, one.training) == (0.5, 0.0, 0.75)
    row = table(found, 10).splitlines()[1]
    assert row.split() == ["red", "sofa", "90", "%", "10", "%", "50", "%", "0", "%", "75", "%"]


def test_images_whose_prompt_has_the_word_are_left_out_of_its_percent():
    asked, unasked = "sks, a cat, red", "sks, a cat"
    with_trigger = [shown("red", asked)] * 10 + [shown("red", unasked)] * 6
    base = [shown("red", asked)] * 10 + [shown("blue", unasked)] * 6
    (one,) = came_along(with_trigger, base)
    assert (one.word, one.with_trigger, one.base, one.without_trigger, one.training) == ("red", 1.0, 0.0, None, None)
    assert came_along(with_trigger[:10], base[:10]) == [], "every prompt asked for it"


def test_chance_counts_every_way_to_deal_the_hits():
    images, hits = 5, 7  # ten images, five of each, of which seven show the word
    ways = [sum(place < images for place in dealt) for dealt in itertools.combinations(range(10), hits)]
    for own in (2, 3, 4, 5):
        expected = sum(way >= own for way in ways) / len(ways)
        assert chance(own, images, hits - own, images) == pytest.approx(expected)
    few = [shown("red")] * 4
    assert came_along(few, [shown("blue")] * 4) == [], "of four images each, all against none can be chance"
    assert [one.word for one in came_along(few + few[:1], [shown("blue")] * 5)] == ["red"]


def test_nothing_is_said_where_nothing_came_along():
    same = [shown("a cat on a sofa")] * 10
    assert came_along(same, same) == []
    assert table([], 10) == "no word has come along that 10 images could show\n"

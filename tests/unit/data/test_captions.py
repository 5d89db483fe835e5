"""Captions in their turns: shares counted, what is kept is kept, and what will occur is known before."""

from collections import Counter

import pytest

from sdxl_lora.config.sections.captions import CaptionConfig
from sdxl_lora.data.captions import (
    AS_WRITTEN,
    Preservation,
    check_shares,
    preservation_of,
    prompts_of,
    varied_caption,
)
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.rng import SampleKey
from tests.helpers.configs import flat_train_config

TAGS = "sks, cat, sitting, red sofa, indoors"
TURNS = [SampleKey(0, epoch) for epoch in range(2000)]


def captions(caption, variants, samples=TURNS, seed=0):
    return [varied_caption((caption,), seed, sample, variants) for sample in samples]


def test_captions_stay_as_they_are_written_by_default():
    odd = " a  {b|c} , d ,,{e} "
    assert captions(odd, AS_WRITTEN, TURNS[:3]) == [odd] * 3


def test_a_tenth_of_the_turns_has_the_empty_prompt():
    found = Counter(captions(TAGS, CaptionConfig(proportion_empty_prompts=0.1)))
    assert set(found) == {TAGS, ""} and found[""] == pytest.approx(200, abs=40)


def test_shuffled_tags_keep_the_first_and_come_in_every_order():
    found = Counter(captions(TAGS, CaptionConfig(shuffle_caption=True, keep_tokens=2)))
    assert all(caption.startswith("sks, cat, ") for caption in found)
    assert len(found) == 6 and min(found.values()) > 250  # 2000 / 3!
    assert all(sorted(caption.split(", ")) == sorted(TAGS.split(", ")) for caption in found)


def test_tag_dropout_leaves_out_its_share_of_what_is_not_kept():
    found = [
        caption.split(", ") for caption in captions(TAGS, CaptionConfig(caption_tag_dropout_rate=0.25, keep_tokens=1))
    ]
    assert all(tags[0] == "sks" for tags in found)
    assert all(tags == [tag for tag in TAGS.split(", ") if tag in tags] for tags in found), "the order stays"
    left = sum(len(tags) - 1 for tags in found) / (4 * len(found))
    assert left == pytest.approx(0.75, abs=0.02)


def test_a_separator_in_the_caption_says_what_is_kept():
    variants = CaptionConfig(caption_tag_dropout_rate=0.999999, keep_tokens_separator="|||", caption_separator=";")
    assert set(captions("sks; a cat ||| x; y; z", variants)) == {"sks; a cat"}
    assert set(captions("a b c", CaptionConfig(shuffle_caption=True, caption_separator=" ", keep_tokens=2))) == {
        "a b c"
    }


def test_wildcards_choose_inner_ones_first_and_leave_other_braces():
    found = Counter(captions("a {red|{light|dark} blue|} {cat}", CaptionConfig(enable_wildcard=True)))
    assert set(found) == {"a red {cat}", "a light blue {cat}", "a dark blue {cat}", "a  {cat}"}
    assert found["a red {cat}"] == pytest.approx(2000 / 3, abs=80)
    assert found["a dark blue {cat}"] == pytest.approx(2000 / 6, abs=60)


def test_each_kind_of_chance_leaves_the_others_alone():
    both = captions(TAGS, CaptionConfig(proportion_empty_prompts=0.3, shuffle_caption=True))
    alone = captions(TAGS, CaptionConfig(shuffle_caption=True))
    assert all(one in ("", other) for one, other in zip(both, alone, strict=True))
    assert captions(TAGS, CaptionConfig(shuffle_caption=True), seed=1) != alone


def test_all_that_will_occur_is_listed_up_to_a_limit():
    variants = CaptionConfig(proportion_empty_prompts=0.5, shuffle_caption=True)
    samples = [SampleKey(example, epoch) for epoch in range(3) for example in range(2)]
    written = [("a, b, c",), ("d, e, f",)]
    listed = prompts_of(written, 7, samples, variants, limit=100)
    assert listed == {varied_caption(written[sample.example], 7, sample, variants) for sample in samples}
    assert prompts_of(written, 7, samples, variants, limit=len(listed)) == listed
    assert prompts_of(written, 7, samples, variants, limit=len(listed) - 1) is None
    assert prompts_of(written, 7, samples, AS_WRITTEN, limit=0) == {"a, b, c", "d, e, f"}


def test_each_sample_takes_one_of_several_captions_by_their_shares():
    several = ("a cat", "1girl, solo", "{red|blue}")

    def found(variants, captions=several):
        return Counter(varied_caption(captions, 0, sample, variants) for sample in TURNS)

    equal = found(AS_WRITTEN)
    assert set(equal) == set(several) and min(equal.values()) == pytest.approx(667, abs=100)
    shares = found(CaptionConfig(caption_shares=(7, 2.5, 0.5)))
    assert [shares[one] for one in several] == [pytest.approx(n, abs=100) for n in (1400, 500, 100)]
    fewer = found(CaptionConfig(caption_shares=(3, 1, 4)), several[:2])
    assert fewer["a cat"] == pytest.approx(1500, abs=100) and fewer["1girl, solo"] == 2000 - fewer["a cat"]
    both = found(CaptionConfig(enable_wildcard=True, proportion_empty_prompts=0.5))
    assert set(both) == {"a cat", "1girl, solo", "red", "blue", ""}
    with pytest.raises(DataError, match="has 3 captions but caption_shares has 2"):
        found(CaptionConfig(caption_shares=(1, 1)))


def test_the_choice_is_by_seed_epoch_and_image_and_moves_no_other_chance():
    several = (TAGS, TAGS.upper())

    def found(variants, seed=0, example=0):
        samples = [SampleKey(example, epoch) for epoch in range(40)]
        return [varied_caption(several, seed, sample, variants) for sample in samples]

    assert found(AS_WRITTEN) == found(AS_WRITTEN)
    assert found(AS_WRITTEN) != found(AS_WRITTEN, seed=1) and found(AS_WRITTEN) != found(AS_WRITTEN, example=1)
    shuffled = CaptionConfig(shuffle_caption=True)
    assert [one.lower() for one in found(shuffled)] == captions(TAGS.lower(), shuffled, TURNS[:40])


def test_of_several_captions_those_that_will_occur_are_listed():
    written, samples = [("a", "b"), ("c",)], [SampleKey(example, epoch) for epoch in range(2) for example in range(2)]
    listed = prompts_of(written, 3, samples, AS_WRITTEN, limit=10)
    assert listed == {varied_caption(written[sample.example], 3, sample, AS_WRITTEN) for sample in samples}
    assert "c" in listed and prompts_of(written, 3, samples, AS_WRITTEN, limit=1) is None


def test_shares_that_do_not_fit_the_images_are_refused():
    check_shares([("a.png", ("a",))], ())
    check_shares([("a.png", ("a",)), ("b.png", ("a", "b"))], (1, 2, 3))
    with pytest.raises(ConfigError, match="no image has several captions"):
        check_shares([("a.png", ("a",))], (1, 2))
    with pytest.raises(ConfigError, match=r"b.png has 3 captions but caption_shares has 2"):
        check_shares([("a.png", ("a",)), ("b.png", ("a", "b", "c"))], (1, 2))
    for shares in ((1, 0), (-1, 2), (float("nan"), 1)):
        with pytest.raises(ConfigError, match=r"caption_shares is .* it must be numbers above 0"):
            flat_train_config(train_data_dir="d", caption_shares=shares)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"proportion_empty_prompts": 1.0}, "proportion_empty_prompts is 1.0, it must be at least 0 and below 1"),
        ({"caption_tag_dropout_rate": -0.1}, "caption_tag_dropout_rate is -0.1"),
        ({"caption_separator": ""}, "caption_separator is empty"),
        ({"max_caption_chunks": 0}, "max_caption_chunks is 0, it must be above 0"),
        ({"keep_tokens": -1}, "keep_tokens is -1, it must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ConfigError) as error:
        flat_train_config(output_dir="run", train_data_dir="data", **settings)
    assert words in str(error.value)


def test_the_steps_that_preserve_are_a_share_of_all_by_the_seed_and_the_step_alone():
    preservation = Preservation(0.3, ("sks",))
    due = [preservation.is_due(0, step) for step in range(2000)]
    assert sum(due) == pytest.approx(600, abs=70)
    assert due[700:] == [Preservation(0.3, ("ohwx",)).is_due(0, step) for step in range(700, 2000)]
    assert due != [preservation.is_due(1, step) for step in range(2000)]
    assert not any(Preservation().is_due(0, step) for step in range(100))


@pytest.mark.parametrize(
    ("caption", "left_out", "replaced"),
    [
        ("sks, a red cat", "a red cat", "animal, a red cat"),
        ("a photo of Sks on a sofa", "a photo of on a sofa", "a photo of animal on a sofa"),
        ("a photo of sks cat", "a photo of", "a photo of animal"),
        ("a dog,  sksy", "a dog,  sksy", "a dog,  sksy"),
        ("", "", ""),
    ],
)
def test_a_preserved_caption_has_the_class_in_place_of_the_trigger_words(caption, left_out, replaced):
    words = ("sks cat", "sks")
    assert Preservation(0.5, words).caption(caption) == left_out
    assert Preservation(0.5, words, "animal").caption(caption) == replaced


def test_preservation_without_a_trigger_word_is_refused(tmp_path):
    folder = {"train_data_dir": str(tmp_path)}
    config = flat_train_config(**folder, output_preservation=0.3)
    with pytest.raises(ConfigError, match="output_preservation needs a trigger word, and none is known"):
        preservation_of(config.objective, config.data)
    entries = ("{train_data_dir: a, trigger_word: sks}", "{train_data_dir: b, trigger_word: sks cat}")
    config = flat_train_config(datasets=entries, output_preservation=0.3, preservation_class="cat")
    preservation = preservation_of(config.objective, config.data)
    assert preservation == Preservation(0.3, ("sks cat", "sks"), "cat"), "the longest first"
    preservation.check(["a dog", "SKS on a sofa"])
    with pytest.raises(ConfigError, match="needs captions with the trigger word, but none contains sks cat, sks"):
        preservation.check(["a dog", ""])
    with pytest.raises(ConfigError, match="preservation_class needs output_preservation"):
        flat_train_config(**folder, preservation_class="cat")
    with pytest.raises(ConfigError, match="does not go with init_lora_weights pissa"):
        flat_train_config(**folder, output_preservation=0.3, init_lora_weights="pissa")

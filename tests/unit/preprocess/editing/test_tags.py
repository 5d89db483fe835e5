"""Tags of many captions at once: what the page calls a tag is what the trainer reads, and all else stays as written."""

import itertools
import random

import pytest

from preprocess.editing.tags import ACTIONS, Edit, Reading, edited, same, tag_counts
from sdxl_lora.config.sections.captions import CaptionConfig
from sdxl_lora.config.trigger_word import has_trigger_word
from sdxl_lora.data.captions import varied_caption
from sdxl_lora.errors import ConfigError
from sdxl_lora.rng import SampleKey

PLAIN = Reading()
CAPTIONS = [
    "sks, 1girl, solo, long hair",
    "sks, 1girl,  Smile , outdoors,",
    "1girl, sks cat, smile",
    "sks, a photo of a dog, sitting in the grass.",
    "Solo",
    "sks ||| 1girl, solo, ||| smile",
    "",
]


def test_what_the_page_counts_is_what_the_trainer_shuffles():
    """Of a caption without tag dropout the trainer makes the same tags, the kept ones in front."""
    for reading in (PLAIN, Reading(",", 2), Reading(",", 1, "|||"), Reading(";", 1)):
        variants = CaptionConfig(
            shuffle_caption=True, keep_tokens=reading.keep_tokens, caption_separator=reading.separator,
            keep_tokens_separator=reading.keep_tokens_separator,
        )  # fmt: skip
        for text in CAPTIONS:
            trained = varied_caption((text,), 0, SampleKey(0, 1), variants)
            kept, others = reading.kept_and_others(text)
            read = [tag.strip() for tag in trained.split(reading.separator) if tag.strip()]
            assert read[: len(kept)] == kept and sorted(read[len(kept) :]) == sorted(others)
        (first, *_) = tag_counts(CAPTIONS, reading)
        assert first.captions == sum(same(first.tag) in map(same, reading.tags(text)) for text in CAPTIONS)


def test_tags_are_counted_by_captions_in_any_case_as_they_are_most_often_spelled():
    counts = {one.tag: (one.captions, one.kept) for one in tag_counts(CAPTIONS[:5], Reading(",", 1))}
    assert counts["1girl"] == (3, 1) and counts["sks"] == (3, 3) and counts["Smile"] == (2, 0)
    assert counts["solo"] == (2, 1) and "Solo" not in counts and counts["sitting in the grass."] == (1, 0)
    assert tag_counts(["", " , "], PLAIN) == []


@pytest.mark.parametrize(
    ("action", "what", "by", "before", "after"),
    [
        ("add", "smile", "", "sks, 1girl", "sks, 1girl, smile"),
        ("add", "smile, solo", "", "sks, Solo,", "sks, Solo, smile"),
        ("add", "smile", "", "A dog in the grass.", "A dog in the grass, smile"),
        ("add", "smile", "", "", "smile"),
        ("add", "smile", "", "1girl, ...", "1girl, ..., smile"),
        ("add in front", "best quality", "", "sks, 1girl", "sks, best quality, 1girl"),
        ("add in front", "best quality", "", "1girl, solo", "best quality, 1girl, solo"),
        ("add in front", "best quality", "", "sks", "sks, best quality"),
        ("remove", "smile", "", "sks,  1girl , SMILE, solo", "sks,  1girl , solo"),
        ("remove", "1girl", "", "1girl", ""),
        ("remove", "hair", "", "long hair, hair ribbon", "long hair, hair ribbon"),
        ("remove", "smile, solo", "", "solo, 1girl, smile", "1girl"),
        ("replace", "1girl", "woman", "sks, 1girl, solo", "sks, woman, solo"),
        ("replace", "1girl", "woman, adult", "1girl, solo", "woman, adult, solo"),
        ("replace", "smile, grin", "happy", "sks, smile, x, grin", "sks, happy, x"),
        ("replace", "1girl", "solo", "sks, 1girl, solo", "sks, solo"),
        ("replace", "smile", "Smile", "sks, smile", "sks, Smile"),
        ("replace text", "long hair", "short hair", "sks, very long hair, x", "sks, very short hair, x"),
        ("replace text", "Grass", "", "a dog in the grass", "a dog in the"),
        ("replace text", "a.c", r"\1", "abc a.c", r"abc \1"),
    ],
)
def test_a_change_does_what_it_says_and_nothing_else(action, what, by, before, after):
    edit = Edit(action, what, by)
    edit.check(PLAIN, "sks")
    assert edited(before, edit, PLAIN, "sks") == after
    if action != "replace text":
        assert edited(after, edit, PLAIN, "sks") == after or action == "replace", "done twice is done once"


def test_the_mark_that_ends_the_kept_tags_stays_where_it_is():
    reading, text = Reading(",", 1, "|||"), "sks, 1girl ||| solo, smile"
    changes = {
        ("add", "x", ""): "sks, 1girl ||| solo, smile, x",
        ("add in front", "x", ""): "sks, x, 1girl ||| solo, smile",
        ("remove", "solo", ""): "sks, 1girl ||| smile",
        ("remove", "1girl", ""): "sks ||| solo, smile",
        ("replace", "1girl, smile", "x"): "sks, x ||| solo",
        ("add", "1girl", ""): text,
    }
    for (action, what, by), after in changes.items():
        assert edited(text, Edit(action, what, by), reading, "sks") == after


def test_no_change_takes_the_trigger_word_out_or_a_tag_that_was_not_meant():
    rng = random.Random(0)
    tags = ["sks", "1girl", "solo", "a cat", "Smile", "sks cat", "long hair"]
    for action, _ in itertools.product(ACTIONS, range(200)):
        text = ", ".join(rng.sample(tags, rng.randint(0, 5)))
        what, by = rng.choice(["solo", "sks cat", "long hair, a cat", "new"]), rng.choice(["new", "solo", "x, y"])
        after = edited(text, Edit(action, what, by), PLAIN, "sks")
        assert has_trigger_word(after, "sks") >= has_trigger_word(text, "sks")
        if action != "replace text":
            named = {same(tag) for tag in PLAIN.tags(f"{what}, {by}, sks")}
            assert [t for t in PLAIN.tags(text) if same(t) not in named] == [
                t for t in PLAIN.tags(after) if same(t) not in named
            ], "the others are the same, in their order"


def test_a_change_that_says_nothing_or_means_the_trigger_word_is_refused():
    for edit, words in [
        (Edit("add", " , "), "tag is empty"), (Edit("replace text", "  "), "tag is empty"),
        (Edit("replace", "solo", " ,"), "is empty: give one"), (Edit("remove", "solo, SKS"), "sks is the trigger word"),
        (Edit("replace", "sks", "ohwx"), "sks is the trigger word"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            edit.check(PLAIN, "sks")

"""Caption variation: the prompt of each sample, from several captions, wildcards, tags or the empty prompt.

A pure function of (seed, epoch, example) with separate random streams, see rng.py, so that all prompts of a training
are known before it begins. Knows no tokens.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sdxl_lora.config.sections.captions import CaptionConfig
from sdxl_lora.config.sections.data import DataConfig
from sdxl_lora.config.sections.objective import ObjectiveConfig
from sdxl_lora.config.tags import kept_and_others
from sdxl_lora.config.trigger_word import has_trigger_word, without_trigger_words
from sdxl_lora.data.dataset import trigger_words_of
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.rng import SampleKey, keyed_seed

WILDCARD = re.compile(r"\{([^{}]*\|[^{}]*)\}")
AS_WRITTEN = CaptionConfig()
Captions: TypeAlias = tuple[str, ...]  # of one image, at least one


@dataclass(frozen=True)
class Preservation:
    """The steps that preserve the base's predictions for captions without the trigger words.

    Attributes:
        share: share of these steps.
        words: the trigger words, the longest first.
        class_word: replacement for them; "" for none.
    """

    share: float = 0.0
    words: tuple[str, ...] = ()
    class_word: str = ""

    def is_due(self, seed: int, step: int) -> bool:
        """Return whether the step after the first `step` is one of these, a function of the seed and the step."""
        return self.share > 0 and random.Random(keyed_seed(seed, "preservation", step)).random() < self.share

    def caption(self, caption: str) -> str:
        return without_trigger_words(caption, self.words, self.class_word)

    def check(self, captions: Iterable[str]) -> None:
        """Raise ConfigError if no caption has a trigger word, which leaves nothing to tell apart."""
        if self.share and not any(has_trigger_word(caption, word) for caption in captions for word in self.words):
            raise ConfigError(
                f"output_preservation needs captions with the trigger word, but none contains {', '.join(self.words)}: "
                "prepare the images with --trigger_word, or leave it out"
            )


NO_PRESERVATION = Preservation()


def preservation_of(objective: ObjectiveConfig, data: DataConfig) -> Preservation:
    """Return the preservation steps that the settings ask for.

    Raises:
        ConfigError: they are requested, but no trigger word is known.
    """
    if objective.output_preservation is None:
        return NO_PRESERVATION
    words = sorted(trigger_words_of(data), key=len, reverse=True)
    if not words:
        raise ConfigError(
            "output_preservation needs a trigger word, and none is known: prepare the images with --trigger_word, or "
            'say it with --datasets "{train_data_dir: FOLDER, trigger_word: WORD}"'
        )
    return Preservation(objective.output_preservation, tuple(words), objective.preservation_class or "")


def varied_caption(captions: Captions, seed: int, sample: SampleKey, variants: CaptionConfig) -> str:
    """Return the prompt that a sample trains with.

    Raises:
        DataError: the image has more captions than there are shares.
    """

    def rng(stream: str) -> random.Random:
        return random.Random(keyed_seed(seed, stream, sample.epoch, sample.example))

    if variants.proportion_empty_prompts and rng("empty_prompt").random() < variants.proportion_empty_prompts:
        return ""
    caption = captions[0]
    if len(captions) > 1:
        caption = choose_one(captions, variants.caption_shares, rng("caption_choice"))
    if variants.enable_wildcard:
        caption = choose_wildcards(caption, rng("wildcard"))
    if variants.shuffle_caption or variants.caption_tag_dropout_rate or variants.keep_tokens_separator:
        caption = vary_tags(caption, variants, rng("tag_shuffle"), rng("tag_dropout"))
    return caption


def choose_one(captions: Captions, shares: Sequence[float], rng: random.Random) -> str:
    """Return one of an image's captions, drawn by the shares; all equally often without shares.

    An image with fewer captions than shares uses the first shares.
    """
    if shares and len(shares) < len(captions):
        raise DataError(too_few_shares(f"an image with {captions[0][:60]!r}", len(captions), shares))
    return rng.choices(captions, shares[: len(captions)] or None)[0]


def too_few_shares(name: str, captions: int, shares: Sequence[float]) -> str:
    """Return the message for an image with more captions than shares."""
    return (
        f"{name} has {captions} captions but caption_shares has {len(shares)}: give as many, or none for equal shares"
    )


def check_shares(images: Iterable[tuple[str, Captions]], shares: Sequence[float]) -> None:
    """Raise ConfigError if shares have no effect, or an image has more captions than there are shares.

    Args:
        images: name and captions of each image.
    """
    if not shares:
        return
    counts = [(len(captions), name) for name, captions in images]
    most, name = max(counts, default=(0, ""))
    if most > len(shares):
        raise ConfigError(too_few_shares(name, most, shares))
    if most < 2:
        raise ConfigError("caption_shares has no effect: no image has several captions, leave it out")


def choose_wildcards(caption: str, rng: random.Random) -> str:
    """Replace every {a|b|c} by one of its choices, inner ones first; braces without a bar stay unchanged."""
    while WILDCARD.search(caption):
        caption = WILDCARD.sub(lambda match: rng.choice(match[1].split("|")), caption)
    return caption


def vary_tags(caption: str, variants: CaptionConfig, shuffling: random.Random, dropping: random.Random) -> str:
    """Return the caption's tags: the kept ones first, then the others after dropout, shuffled if asked to."""
    kept, others = kept_and_others(
        caption, variants.caption_separator, variants.keep_tokens, variants.keep_tokens_separator
    )
    others = [tag for tag in others if dropping.random() >= variants.caption_tag_dropout_rate]
    if variants.shuffle_caption:
        shuffling.shuffle(others)
    glue = variants.caption_separator if variants.caption_separator.isspace() else f"{variants.caption_separator} "
    return glue.join([*kept, *others])


def prompts_of(
    captions: Sequence[Captions], seed: int, samples: Iterable[SampleKey], variants: CaptionConfig, limit: int
) -> set[str] | None:
    """Return every prompt that the samples train with; None if there are more than `limit`.

    Args:
        captions: the captions of each example.
    """
    if not (variants.vary or any(len(of_example) > 1 for of_example in captions)):
        return {caption for (caption,) in captions}
    prompts = set()
    for sample in samples:
        prompts.add(varied_caption(captions[sample.example], seed, sample, variants))
        if len(prompts) > limit:
            return None
    return prompts

"""What a picture's caption is in one of its turns: wildcards, tag shuffling, tag dropout, the empty prompt.

A pure function of (seed, epoch, example), each kind of chance with a stream of its own, as in draws.py. So the captions
that will occur in a training are known before it begins. Knows no tokens.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdxl_lora.rng import Turn, keyed_seed

WILDCARD = re.compile(r"\{([^{}]*\|[^{}]*)\}")


@dataclass(frozen=True)
class CaptionVariants:
    """How captions vary; not at all, as it stands.

    empty_share: share of turns with the empty prompt, for classifier-free guidance.
    wildcards: {red|blue} becomes one of its choices.
    shuffle: tags, what stands between separators, come in another order.
    tag_dropout: share of tags left out.
    keep_tags: so many at the beginning are neither moved nor left out (the trigger word).
    keep_separator: if it stands in a caption, all before it is kept instead, and it is taken out.
    """

    empty_share: float = 0.0
    wildcards: bool = False
    shuffle: bool = False
    tag_dropout: float = 0.0
    keep_tags: int = 0
    separator: str = ","
    keep_separator: str | None = None


AS_WRITTEN = CaptionVariants()


def caption_in_turn(caption: str, seed: int, turn: Turn, variants: CaptionVariants) -> str:
    """The prompt that a picture's turn trains with."""

    def chance(stream: str) -> random.Random:
        return random.Random(keyed_seed(seed, stream, turn.epoch, turn.example))

    if variants.empty_share and chance("empty_prompt").random() < variants.empty_share:
        return ""
    if variants.wildcards:
        caption = choose_wildcards(caption, chance("wildcard"))
    if variants.shuffle or variants.tag_dropout or variants.keep_separator:
        caption = vary_tags(caption, variants, chance("tag_shuffle"), chance("tag_dropout"))
    return caption


def choose_wildcards(caption: str, chance: random.Random) -> str:
    """One of the choices of every {a|b|c}, inner ones first; braces without a bar stay as they are."""
    while WILDCARD.search(caption):
        caption = WILDCARD.sub(lambda match: chance.choice(match[1].split("|")), caption)
    return caption


def vary_tags(caption: str, variants: CaptionVariants, shuffling: random.Random, dropping: random.Random) -> str:
    """The caption's tags: first the kept ones, then the others that stay, perhaps in another order."""
    if variants.keep_separator and variants.keep_separator in caption:
        before, after = caption.split(variants.keep_separator, 1)
        kept, others = tags_of(before, variants.separator), tags_of(after, variants.separator)
    else:
        tags = tags_of(caption, variants.separator)
        kept, others = tags[: variants.keep_tags], tags[variants.keep_tags :]
    others = [tag for tag in others if dropping.random() >= variants.tag_dropout]
    if variants.shuffle:
        shuffling.shuffle(others)
    glue = variants.separator if variants.separator.isspace() else f"{variants.separator} "
    return glue.join([*kept, *others])


def tags_of(text: str, separator: str) -> list[str]:
    return [tag.strip() for tag in text.split(separator) if tag.strip()]


def prompts_of(
    captions: Sequence[str], seed: int, turns: Iterable[Turn], variants: CaptionVariants, limit: int
) -> set[str] | None:
    """Every prompt that the turns train with, or None if they are more than `limit`."""
    if variants == AS_WRITTEN:
        return set(captions)
    prompts = set()
    for turn in turns:
        prompts.add(caption_in_turn(captions[turn.example], seed, turn, variants))
        if len(prompts) > limit:
            return None
    return prompts

"""Things in images that no prompt asked for, found in words that describe the images. Independent of models and files.

A word is a noun, a colour or a pose from a caption ("sofa"), a pair of consecutive words ("red sofa"), or a tag of a
tagger ("long hair"). It has come along if it describes many more of a LoRA's images than of the base's with the same
prompts and seeds, more than chance explains. Images whose prompt has the word do not count.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import fisher_exact

from sdxl_lora.config.tags import tags_of

MUCH = 0.25  # of the images: the least difference that is reported
CHANCE = 0.01  # one-sided p-value of Fisher's exact test; some hundred words are tried
FEWEST = 5  # images of each kind: with four, even all against none can be chance
# words that say nothing of an image, and the usual beginnings of captions
STOP_WORDS = frozenset(
    single
    for line in (
        "a an the and or but of in on at by to for from with without into onto over under near up down out off as",
        "is are was were be been being has have had it its this that these those there here then than so not no",
        "his her their he she they him them who which what where while also very some any each other one two",
        "appears appear seems seem shows show showing shown depicts features can see seen we our",
        "image images picture photo photograph",
    )
    for single in line.split()
)


@dataclass(frozen=True)
class Shown:
    """Words that describe an image, and the single words of its prompt."""

    words: frozenset[str]
    asked: frozenset[str]

    def was_asked(self, word: str) -> bool:
        return all(one in self.asked for one in map(singular, single_words(word)))


@dataclass(frozen=True)
class CameAlong:
    """Word, and the share of images that show it unasked; None where every prompt has it, or there is no image.

    with_trigger, base: of the LoRA's and the base's images, with the trigger word in the prompts.
    without_trigger, base_without: likewise for the same prompts without it.
    training: of the training images.
    """

    word: str
    with_trigger: float
    base: float
    without_trigger: float | None
    base_without: float | None
    training: float | None


def came_along(
    with_trigger: Sequence[Shown],
    base: Sequence[Shown],
    without_trigger: Sequence[Shown] = (),
    base_without: Sequence[Shown] = (),
    training: Sequence[frozenset[str]] = (),
) -> list[CameAlong]:
    """Return words for things that a LoRA draws unasked, unlike the base, by falling difference; see CameAlong."""
    found = []
    trained = [Shown(words, frozenset()) for words in training]
    for word in sorted(frozenset[str]().union(*(one.words for one in with_trigger))):
        own, of_base = counts(word, with_trigger), counts(word, base)
        if share(own) is None or share(of_base) is None or chance(*own, *of_base) > CHANCE:
            continue
        shares = [share(counts(word, images)) for images in (without_trigger, base_without, trained)]
        one = CameAlong(word, own[0] / own[1], of_base[0] / of_base[1], *shares)
        if one.with_trigger - one.base >= MUCH:
            found.append(one)
    return sorted(without_parts(found), key=lambda one: (one.base - one.with_trigger, one.word))


def counts(word: str, images: Sequence[Shown]) -> tuple[int, int]:
    """Count the images that show the word, and all images, among those whose prompt does not ask for it."""
    unasked = [image for image in images if not image.was_asked(word)]
    return sum(word in image.words for image in unasked), len(unasked)


def share(counted: tuple[int, int]) -> float | None:
    hits, images = counted
    return hits / images if images else None


def chance(hits: int, images: int, base_hits: int, base_images: int) -> float:
    """Return the probability that chance alone gives these images `hits` or more of all hits."""
    table = [[hits, images - hits], [base_hits, base_images - base_hits]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def without_parts(found: Sequence[CameAlong]) -> list[CameAlong]:
    """Leave out a single word that is part of a pair at least as frequent: "sofa" beside "red sofa"."""
    pairs = [one for one in found if " " in one.word]
    return [
        one
        for one in found
        if " " in one.word
        or not any(one.word in pair.word.split() and pair.with_trigger >= one.with_trigger for pair in pairs)
    ]


def words_of_caption(text: str) -> frozenset[str]:
    """Return the meaningful words of a sentence, and pairs of consecutive ones, such as "red sofa"."""
    said: set[str] = set()
    before = None
    for word in re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*|[,.;:]", text.lower()):
        if word in STOP_WORDS or not word[0].isalpha():
            before = None
            continue
        said.add(word)
        if before:
            said.add(f"{before} {word}")
        before = word
    return frozenset(said)


def words_of_tags(text: str) -> frozenset[str]:
    """Return the tags between commas, in lower case."""
    return frozenset(tag.lower() for tag in tags_of(text))


def asked_by(prompt: str) -> frozenset[str]:
    return frozenset(map(singular, single_words(prompt)))


def single_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def singular(word: str) -> str:
    """Return an approximate singular, which need only be the same for "cat" and "cats"."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def table(found: Iterable[CameAlong], images: int) -> str:
    """Return percentages in aligned columns; `-` where every prompt asks for the word.

    Args:
        images: of each kind, with the trigger word.
    """
    head = ["", "with the trigger word", "base", "without it", "base", "training images"]
    rows = [head]
    for one in found:
        shares = (one.with_trigger, one.base, one.without_trigger, one.base_without, one.training)
        rows.append([one.word, *("-" if value is None else f"{100 * value:.0f} %" for value in shares)])
    if len(rows) == 1:
        return f"no word has come along that {images} images could show\n"
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join(lines) + "\n"

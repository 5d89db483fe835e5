"""The one rule for whether a trigger word is in a text: as a whole word, in any case, as CLIP's tokenizer reads it."""

import re
from collections.abc import Iterable


def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def has_trigger_word(text: str, word: str) -> bool:
    return _pattern(word).search(text) is not None


def with_trigger_word(text: str, word: str) -> str:
    """The text with the word in front, or as it is where the word is in it: "sks, a tabby cat"."""
    if not word or has_trigger_word(text, word):
        return text
    return f"{word}, {text}" if text else word


def without_trigger_words(text: str, words: Iterable[str], instead: str = "") -> str:
    """The text without the words and the commas that are then too many; as it is where none is in it.

    Args:
        instead: what comes in place of each word.
    """
    rest = text
    for word in words:
        rest = _pattern(word).sub(lambda _: instead, rest)
    if rest == text:
        return text
    tags = [" ".join(tag.split()) for tag in rest.split(",")]
    return ", ".join(tag for tag in tags if tag)

"""The one rule for finding a trigger word in a text: whole words, in any case, as CLIP's tokenizer reads them."""

import re
from collections.abc import Iterable


def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def has_trigger_word(text: str, word: str) -> bool:
    return _pattern(word).search(text) is not None


def with_trigger_word(text: str, word: str) -> str:
    """Return the text with the word prepended, as in "sks, a tabby cat", unless it contains the word already."""
    if not word or has_trigger_word(text, word):
        return text
    return f"{word}, {text}" if text else word


def without_trigger_words(text: str, words: Iterable[str], instead: str = "") -> str:
    """Remove the words and the commas left over; return the text unchanged if it contains none of them.

    Args:
        instead: replacement for each word.
    """
    rest = text
    for word in words:
        rest = _pattern(word).sub(lambda _: instead, rest)
    if rest == text:
        return text
    tags = [" ".join(tag.split()) for tag in rest.split(",")]
    return ", ".join(tag for tag in tags if tag)

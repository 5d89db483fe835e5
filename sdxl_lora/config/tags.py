"""The tags of a caption, what stands between its commas, and those of them that stay in front. Strings only."""


def tags_of(text: str, separator: str = ",") -> list[str]:
    """The tags in their order, without the blanks around them; of "sks, a cat,, " they are "sks" and "a cat"."""
    return [tag.strip() for tag in text.split(separator) if tag.strip()]


def kept_and_others(
    text: str, separator: str = ",", keep_tokens: int = 0, keep_tokens_separator: str | None = None
) -> tuple[list[str], list[str]]:
    """The tags that are neither moved nor left out, and the others: by a mark in the text, else the first ones.

    Args:
        keep_tokens: so many are kept where the mark is not in the text.
        keep_tokens_separator: the mark, which itself is in neither list.
    """
    if keep_tokens_separator and keep_tokens_separator in text:
        before, after = text.split(keep_tokens_separator, 1)
        return tags_of(before, separator), tags_of(after, separator)
    tags = tags_of(text, separator)
    return tags[:keep_tokens], tags[keep_tokens:]

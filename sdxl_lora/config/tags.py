"""Tags of a caption, the parts between its commas, and the leading tags to keep. Works on strings only."""


def tags_of(text: str, separator: str = ",") -> list[str]:
    """Return the tags in order, stripped, without empty ones: "sks, a cat,, " gives ["sks", "a cat"]."""
    return [tag.strip() for tag in text.split(separator) if tag.strip()]


def kept_and_others(
    text: str, separator: str = ",", keep_tokens: int = 0, keep_tokens_separator: str | None = None
) -> tuple[list[str], list[str]]:
    """Split the tags into those that are neither moved nor dropped and the others.

    Args:
        keep_tokens: number of leading tags to keep if the text has no keep_tokens_separator.
        keep_tokens_separator: mark that ends the kept tags; it appears in neither list.
    """
    if keep_tokens_separator and keep_tokens_separator in text:
        before, after = text.split(keep_tokens_separator, 1)
        return tags_of(before, separator), tags_of(after, separator)
    tags = tags_of(text, separator)
    return tags[:keep_tokens], tags[keep_tokens:]

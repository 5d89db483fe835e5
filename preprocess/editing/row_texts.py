"""The text of a line of metadata.jsonl, and the same line with another: of several captions, each in its place."""

from collections.abc import Sequence

from preprocess.captions.caption_text import training_text


def text_of(row: dict) -> str:
    """The row's caption, "" where it has none."""
    text = row.get("text")
    return "" if text is None else str(text)


def with_text(row: dict, text: str, others: Sequence[str] = ()) -> dict:
    """A row with another text, which of several captions takes the place of the one that was shown.

    Args:
        others: captions in place of the row's others.
    """
    captions = row.get("captions")
    if others:
        return {**row, "text": text, "captions": [text, *others]}
    if isinstance(captions, list) and captions:
        return {**row, "text": text, "captions": [text if one == row.get("text") else one for one in captions]}
    return row if text_of(row) == text else {**row, "text": text}


def with_word(row: dict, trigger_word: str) -> dict:
    """A row whose captions all have the trigger word; as it is where it is of a class image."""
    if row.get("is_class_image"):
        return row
    new = with_text(row, training_text(text_of(row), trigger_word))
    captions = new.get("captions")
    if isinstance(captions, list):
        new = {**new, "captions": [training_text(str(one), trigger_word) for one in captions]}
    return new

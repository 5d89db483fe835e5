"""Read and replace the captions of a row of metadata.jsonl."""

from collections.abc import Sequence

from preprocess.captions.caption_text import training_text


def text_of(row: dict) -> str:
    """Return the row's caption, "" where it has none."""
    text = row.get("text")
    return "" if text is None else str(text)


def with_text(row: dict, text: str, others: Sequence[str] = ()) -> dict:
    """Return the row with another text, which also replaces the old one in its list of captions.

    Args:
        others: captions that replace the row's others.
    """
    captions = row.get("captions")
    if others:
        return {**row, "text": text, "captions": [text, *others]}
    if isinstance(captions, list) and captions:
        return {**row, "text": text, "captions": [text if one == row.get("text") else one for one in captions]}
    return row if text_of(row) == text else {**row, "text": text}


def with_word(row: dict, trigger_word: str) -> dict:
    """Return the row with the trigger word in all of its captions; a class image's row stays as it is."""
    if row.get("is_class_image"):
        return row
    new = with_text(row, training_text(text_of(row), trigger_word))
    captions = new.get("captions")
    if isinstance(captions, list):
        new = {**new, "captions": [training_text(str(one), trigger_word) for one in captions]}
    return new

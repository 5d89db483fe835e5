"""Trigger word in a dataset's README.md. Knows no images."""

import re
import warnings
from pathlib import Path

import yaml

from sdxl_lora.config.yaml_text import load_text
from sdxl_lora.errors import DataError
from sdxl_lora.io.text_files import read_text

HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def trigger_word_in(card: Path) -> str:
    """Return the trigger word that preprocess wrote into a dataset card; "" if there is none.

    Warns:
        UserWarning: the README.md cannot be read, which may be anyone's notes.
    Raises:
        DataError: the trigger word is not text.
    """
    try:
        head = HEAD.match(read_text(card))
        values = load_text(head[1]) if head else None
    except (DataError, yaml.YAMLError) as error:
        warnings.warn(f"{card} is not read for a trigger word: {' '.join(str(error).split())}", stacklevel=2)
        return ""
    word = values.get("trigger_word") if isinstance(values, dict) else None
    if word is None:
        return ""
    if not isinstance(word, str):
        raise DataError(f"trigger_word in {card} must be a single string, it is {word!r}")
    return " ".join(word.split())

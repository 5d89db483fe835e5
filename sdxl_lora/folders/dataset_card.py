"""The trigger word in a dataset's README.md. Knows no pictures."""

import re
import warnings
from pathlib import Path

import yaml

from sdxl_lora.config.yaml_text import load_text
from sdxl_lora.errors import DataError
from sdxl_lora.io.text_files import read_text

HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def trigger_word_in(card: Path) -> str:
    """The trigger word that preprocess wrote into a card; "" where there is none.

    Warns:
        a README.md that cannot be read, as anybody's notes may be.
    Raises:
        DataError: the trigger word is no text.
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
        raise DataError(f"trigger_word in {card} must be one text, it is {word!r}")
    return " ".join(word.split())

"""The page's HTML: macros of the files in templates/, called as functions.

Their arguments are escaped, and texts are in the language of the current request.
"""

import difflib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.trigger_word import has_trigger_word
from webui.locale.i18n import in_page_words, say, say_label
from webui.server.served import thumbnail_url

STATES = {
    "new": "not started", "waiting": "waiting", "running": "running", "starting": "starting",
    "caching": "encoding images", "training": "training", "sampling": "drawing samples", "stopping": "stopping",
    "done": "done", "planned": "planned only", "stopped": "stopped", "failed": "failed", "killed": "interrupted",
    "cancelled": "cancelled",
}  # fmt: skip


def state_words(state: str) -> str:
    """Return a state in words; one of another trainer version in its own word."""
    return say(STATES[state]) if state in STATES else state


def short(number: float) -> str:
    """Return three significant digits; small numbers as 1e-4."""
    if number and abs(number) < 1e-3:
        mantissa, exponent = f"{number:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def css_text(text: str) -> str:
    """Return the text for a CSS string, escaped so that nothing in it can end the string or the sheet."""
    return "".join(c if c.isascii() and (c.isalnum() or c in " .,:-") else f"\\{ord(c):x} " for c in text)


def difference(before: str, after: str) -> Iterator[tuple[str, str]]:
    """Yield the pieces of a caption: "del" for removed ones, "ins" for new ones, "" for the rest."""
    old, new = (re.findall(r"\s+|,|[^\s,]+", text) for text in (before, after))
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        pieces = [("", old[i:j])] if kind == "equal" else [("del", old[i:j]), ("ins", new[k:m])]
        yield from ((mark, "".join(words)) for mark, words in pieces if words)


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
)  # fmt: skip
ENVIRONMENT.globals |= {
    "say": say,
    "of_training": partial(in_page_words, TrainConfig),
    "of_preparing": partial(in_page_words, PreprocessConfig),
    "label_of_masked_loss": partial(say_label, TrainConfig, "masked_loss"),
    **{one.__name__: one for one in (state_words, short, percent, css_text, difference)},
    **{one.__name__: one for one in (has_trigger_word, thumbnail_url)},
}


def macros(name: str) -> Any:
    return ENVIRONMENT.get_template(f"{name}.html").module


parts, runs, datasets = map(macros, ("parts", "runs", "datasets"))

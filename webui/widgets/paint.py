"""A button for each image of a dataset that opens paint.js: a mask painted over it says what is not learned."""

import json
from functools import cache
from html import escape
from pathlib import Path

from sdxl_lora.config.train import TrainConfig
from webui.locale.i18n import LANGUAGES, say, say_label


def words(language: str) -> dict[str, str]:
    """What paint.js says."""
    label = say_label(language, TrainConfig, "masked_loss")
    return {
        "how": say(
            language,
            "What you paint over is not learned; the rest of the image is. It counts where “{label}” is on.",
            label=label,
        ),
        "canvas": say(
            language, "The mask: the arrow keys move the brush, with Shift by one pixel, and the space bar paints"
        ),
        "over": say(language, "Paint over"),
        "off": say(language, "Rub out"),
        "size": say(language, "Brush size"),
        "back": say(language, "Take back"),
        "swap": say(language, "Swap"),
        "clear": say(language, "Learn all of it"),
        "save": say(language, "Save the mask"),
        "close": say(language, "Close"),
        "share": say(language, "{percent} of the image is not learned.", percent="{percent}"),
        "leave": say(language, "Leave without saving the mask?"),
        "lost": say(language, "The page's server does not answer."),
        "gone": say(language, "This image cannot be shown: it may have been deleted."),
    }


@cache
def paint_script() -> str:
    """JavaScript that opens the painter, as a block of its own."""
    script = (Path(__file__).parent / "paint.js").read_text(encoding="utf-8")
    by_language = {language: words(language) for language in LANGUAGES}
    return "{" + script.replace("WORDS", json.dumps(by_language, ensure_ascii=False)) + "}"


def paint_html(language: str, image: Path, mask: Path | None, **facts: str) -> str:
    """The button, and whether there is a mask.

    Args:
        image, mask: files.
        facts: of the row, for paint.js: `dataset` and `words` for the image; `file` and `seen`, names of both files.
    """
    label = say(language, "Change the mask") if mask else say(language, "Paint a mask")
    data = {"path": str(image), "mask": str(mask or ""), **facts}
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items())
    name, note = escape(f"{label}: {facts['words']}"), say(language, "part of it is not learned") if mask else ""
    button = f'<button type="button" class="tag paint" aria-label="{name}" {attributes}>{escape(label)}</button>'
    return f'<div class="tags about">{button}{escape(note)}</div>'

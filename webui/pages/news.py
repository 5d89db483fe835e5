"""What a look at the page brings: what has changed since the last one, part by part; and the script that asks."""

import json
import logging
import secrets
from collections.abc import Callable
from html import escape
from pathlib import Path

import gradio as gr

from webui.locale.i18n import LANGUAGES, say
from webui.pages.tab_dataset import CARDS

LOG = logging.getLogger(__name__)


def look_script(dataset_at: int, dataset_outputs: int, lists: list[int]) -> str:
    """JavaScript that asks for a look, with the words for a server that does not answer.

    Args:
        dataset_at: place of the dataset's first output among all that a look may change.
        dataset_outputs: how many outputs the dataset has.
        lists: places of those that Gradio itself answers with.
    """
    script = (Path(__file__).parent / "look.js").read_text(encoding="utf-8")
    script = script.replace("DATASET_AT", str(dataset_at)).replace("LISTS", str(lists))
    script = script.replace("DATASET_OUTPUTS", str(dataset_outputs)).replace("CARDS", str(CARDS))
    words = {language: say(language, "The page's server does not answer. What runs goes on.") for language in LANGUAGES}
    return script.replace("NO_ANSWER", json.dumps(words, ensure_ascii=False))


def watch_script() -> str:
    """JavaScript that says where the page hears nothing more, in words by language."""
    words = {
        language: say(language, "This page has lost its server: reload it to see what happens.")
        for language in LANGUAGES
    }
    script = (Path(__file__).parent / "watch.js").read_text(encoding="utf-8")
    return script.replace("LOST", json.dumps(words, ensure_ascii=False))


_told: set[str] = set()
_PROCESS = secrets.token_hex(8)


def part(count: int, make: Callable[[], list]) -> list:
    """Return what a part of the page shows; where that fails over what nobody thought of, its first output says so, and
    all other parts go on. The whole of it stands in the server's log, once.

    Args:
        count: of its outputs; `make` may give none where nothing is new.
    """
    try:
        return make() or [gr.skip()] * count
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        if words not in _told:
            _told.add(words)
            LOG.exception("a part of the page cannot be shown")
        return [f'<p class="ending failed">{escape(words)}</p>', *[gr.skip()] * (count - 1)]


def chooser(names: list[str], chosen: str | None) -> dict:
    """New choices. The choice itself is left alone while it is one: it may have changed since the page asked."""
    if chosen in names:
        return gr.update(choices=names)
    return gr.update(choices=names, value=names[0] if names else None)


def newest(folders: list[str]) -> str:
    """The dataset that was prepared last."""

    def changed(folder: str) -> float:
        try:
            return (Path(folder) / "metadata.jsonl").stat().st_mtime
        except OSError:  # it has gone meanwhile
            return 0.0

    return max(folders, key=changed)


def fingerprint(value: object) -> int:
    """Short, as every look brings it along. Another process, after a restart of the page, has others: Gradio has then
    forgotten which choices it has given, and must be told them again."""
    return hash((_PROCESS, repr(value))) % 2**32

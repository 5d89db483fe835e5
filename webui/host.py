"""Changes of Gradio for the app that holds the page: its texts, and the files that a request may name.

Gradio takes texts from the app's own I18n or from none; apps that hold the page get ours in addition.

Gradio copies the file named by a dictionary {"path": ...} in any input to where it can be fetched. Its own check works
only in an app started by `launch`, not in a mounted one, and lets web addresses pass in both. For the page, the file
must have been uploaded or offered here: nothing else of the machine or the web.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from webui.locale.i18n import I18N

_ours: set[int] = set()  # ids of components, unique in a process


def adopt(components: set[int]) -> None:
    """Mark components as the page's own, in any app."""
    _ours.update(components)


def texts_of(app: gr.Blocks) -> gr.I18n | None:
    """Return the app's own texts, which take precedence, with ours if the page is in it."""
    own = vars(app).get("i18n_instance")
    if _ours.isdisjoint(app.blocks) or own is I18N:
        return own
    theirs, ours = (own.translations_dict if own else {}), I18N.translations_dict
    return gr.I18n(
        **{language: {**ours.get(language, {}), **theirs.get(language, {})} for language in {**ours, **theirs}}
    )


def set_texts(app: gr.Blocks, own: gr.I18n | None) -> None:
    vars(app)["i18n_instance"] = own


def named_files(value: Any) -> Iterator[Any]:
    """Yield every value that stands for a file in a browser's input."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from named_files(part)


def is_offered(path: Any) -> bool:
    """Return whether a file lies in the folder of uploads and offered downloads."""
    served = Path(get_upload_folder()).resolve()
    try:
        return Path(path).resolve().is_relative_to(served)
    except (TypeError, ValueError, OSError):
        return False


def checked(preprocess_data: Callable) -> Callable:
    """Return Gradio's step from a browser's input to a function's arguments, with the file check in front."""

    @functools.wraps(preprocess_data)
    async def preprocess(blocks: gr.Blocks, block_fn: Any, inputs: list, *arguments, **settings) -> Any:
        if any(block._id in _ours for block in block_fn.inputs) and not all(map(is_offered, named_files(inputs))):
            raise gr.Error("This file was not uploaded here.", print_exception=False)
        return await preprocess_data(blocks, block_fn, inputs, *arguments, **settings)

    return preprocess


setattr(gr.Blocks, "i18n_instance", property(texts_of, set_texts))  # noqa: B010 - mypy knows no such attribute
gr.Blocks.preprocess_data = checked(gr.Blocks.preprocess_data)

"""What the page changes of Gradio, in whatever app it is a tab of: its texts, and which files a request may name.

Gradio takes texts from the app's own I18n, or from none; apps in which the page is have ours in addition.

It copies the file that a dictionary {"path": ...} in any input names to where it can be fetched. Its own check holds
only in an app that `launch` has started, not in one that is mounted, and lets addresses of the web pass in both. For
the page it must have been uploaded or offered here: nothing else of machine or web.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from webui.locale.i18n import I18N

_ours: set[int] = set()  # ids of components, which Gradio gives once in a process


def adopt(components: set[int]) -> None:
    """From now on these are the page's, in whatever app."""
    _ours.update(components)


def texts_of(app: gr.Blocks) -> gr.I18n | None:
    """The app's own texts, which win, and ours where the page is in it."""
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
    """Whatever stands for a file in what a browser sends."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from named_files(part)


def is_offered(path: Any) -> bool:
    """Return whether it lies in the folder of what was uploaded or offered for download."""
    served = Path(get_upload_folder()).resolve()
    try:
        return Path(path).resolve().is_relative_to(served)
    except (TypeError, ValueError, OSError):
        return False


def checked(preprocess_data: Callable) -> Callable:
    """Gradio's step from what a browser sends to what a function is called with, behind the check."""

    @functools.wraps(preprocess_data)
    async def preprocess(blocks: gr.Blocks, block_fn: Any, inputs: list, *arguments, **settings) -> Any:
        if any(block._id in _ours for block in block_fn.inputs) and not all(map(is_offered, named_files(inputs))):
            raise gr.Error("This file was not uploaded here.", print_exception=False)
        return await preprocess_data(blocks, block_fn, inputs, *arguments, **settings)

    return preprocess


setattr(gr.Blocks, "i18n_instance", property(texts_of, set_texts))  # noqa: B010 - mypy knows no such attribute
gr.Blocks.preprocess_data = checked(gr.Blocks.preprocess_data)

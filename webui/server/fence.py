"""What a request may name as a file: one that was uploaded or offered here, nothing else of machine or web.

Gradio copies the file that a dictionary {"path": ...} in any input names to where it can be fetched. Its own check
holds only in an app that `launch` has started, not in one that is mounted, and lets addresses of the web pass in both.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

_fenced: set[int] = set()  # ids of components, which Gradio gives once in a process


def fence(components: set[int]) -> None:
    """From now on, functions with one of these among their inputs are handed no other file, in whatever app."""
    _fenced.update(components)


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
        if any(block._id in _fenced for block in block_fn.inputs) and not all(map(is_offered, named_files(inputs))):
            raise gr.Error("This file was not uploaded here.", print_exception=False)
        return await preprocess_data(blocks, block_fn, inputs, *arguments, **settings)

    return preprocess


gr.Blocks.preprocess_data = checked(gr.Blocks.preprocess_data)

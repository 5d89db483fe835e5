"""Texts of the page for a browser that asks for French."""

import types
from collections.abc import Callable
from typing import Any

from gradio.context import LocalContext

REQUEST = types.SimpleNamespace(headers={"accept-language": "fr"})


def french(function: Callable, *arguments, **facts) -> Any:
    token = LocalContext.request.set(REQUEST)
    try:
        return function(*arguments, **facts)
    finally:
        LocalContext.request.reset(token)

"""Event settings and handlers: messages, and errors that a person can fix."""

import functools
import json
import logging
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from sdxl_lora.errors import ConfigError, DataError, DiskError
from webui.locale.i18n import say, say_problem

LOG = logging.getLogger(__name__)

# For every event of the page: show no progress, on no component. Gradio's browser side gives each component that could
# show it a timer, redraws that at every frame while the server works, and searches the whole page for these components
# whenever an event begins or ends. For a page that asks once a second this takes a quarter of a core.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": (), "api_visibility": "private"}


def tell(words: str) -> None:
    """Show a message that closes by itself."""
    gr.Info(escape(words), duration=5, title="SDXL LoRA")


def show_errors(handler: Callable) -> Callable:
    """Return a handler that shows errors a person can fix as a message."""

    @functools.wraps(handler)
    def wrapped(*arguments):
        try:
            return handler(*arguments)
        except (ConfigError, DataError, DiskError) as error:
            problems = getattr(error, "problems", (str(error),))
            words = "<br>".join(escape(say_problem(problem)) for problem in problems)
            raise gr.Error(words, title=say("That did not work"), print_exception=False) from None

    return wrapped


def as_json(handler: Callable) -> Callable:
    """Return a handler for our scripts that answers in JSON, {"error": words} if it fails."""

    @functools.wraps(handler)
    def wrapped(*arguments) -> str:
        try:
            return json.dumps(handler(*arguments), separators=(",", ":"))
        except (ConfigError, DataError, DiskError) as error:
            return json.dumps({"error": say_problem(str(error))})
        except (KeyError, TypeError, ValueError, OSError) as error:  # an invalid request, or our mistake
            LOG.exception("a request from the page's own scripts failed")
            return json.dumps({"error": f"{type(error).__name__}: {error}"})

    return wrapped

"""How the page listens to what a person does, and how it answers: messages, and errors that can be mended."""

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

# How every event of the page is listened to: without a sign of progress, and with no component to show one on. Gradio's
# browser side gives each component that an event could show it on a clock, which it redraws at every frame while the
# server thinks, and looks all of them up in the whole page whenever any event begins or ends: a quarter of a core for
# a page that looks once a second.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": (), "api_visibility": "private"}


def tell(words: str) -> None:
    """A message that goes by itself."""
    gr.Info(escape(words), duration=5, title="SDXL LoRA")


def show_errors(handler: Callable) -> Callable:
    """A handler whose errors that a person can mend become a message."""

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
    """A handler that a script of ours asks: its answer as JSON, or {"error": words} where it fails."""

    @functools.wraps(handler)
    def wrapped(*arguments) -> str:
        try:
            return json.dumps(handler(*arguments), separators=(",", ":"))
        except (ConfigError, DataError, DiskError) as error:
            return json.dumps({"error": say_problem(str(error))})
        except (KeyError, TypeError, ValueError, OSError) as error:  # it asks for what makes no sense, or we are wrong
            LOG.exception("a request of the page's own scripts failed")
            return json.dumps({"error": f"{type(error).__name__}: {error}"})

    return wrapped

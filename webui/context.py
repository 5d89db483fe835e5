"""What every part of the page needs, and what stands between the browser's words and the disk."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdxl_lora.errors import ConfigError, DataError, DiskError
from webui.i18n import language_of, say, say_problem
from webui.runs.jobs import Job, Jobs
from webui.workspace import Workspace

# How every event of the page is listened to: without a sign of progress, and with no component to show one on. Gradio's
# browser side gives each component that an event could show it on a clock, which it redraws at every frame while the
# server thinks, and looks all of them up in the whole page whenever any event begins or ends: a quarter of a core for
# a page that looks once a second.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": (), "api_visibility": "private"}


@dataclass(frozen=True)
class Context:
    """
    Attributes:
        before_training: called before anything of ours will want the GPU.
    """

    places: Workspace
    jobs: Jobs
    before_training: Callable[[], None]

    def run_of(self, name: str | None) -> Path | None:
        """The folder of "project/run"; None for a name that cannot be one."""
        return self._folder(self.places.run_folder, name)

    def dataset_of(self, name: str | None) -> Path | None:
        """The folder of "project/dataset"; None for a name that cannot be one."""
        return self._folder(self.places.dataset_folder, name)

    def _folder(self, folder_of: Callable, name: str | None) -> Path | None:
        project, _, own_name = (name or "").partition("/")
        try:
            return folder_of(project, own_name)
        except ConfigError:
            return None

    def start(self, job: Job) -> Job:
        """Let the host free its memory, then queue the job."""
        self.before_training()
        return self.jobs.add(job)


def run_name(run: Path) -> str:
    return f"{run.parent.parent.name}/{run.name}"


def dataset_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def tell(words: str) -> None:
    """A message that goes by itself."""
    gr.Info(escape(words), duration=5, title="SDXL LoRA")


def show_errors(handler: Callable) -> Callable:
    """A handler whose first argument is the request, and whose errors that a person can mend become a message."""

    @functools.wraps(handler)
    def wrapped(request: gr.Request, *arguments):
        try:
            return handler(request, *arguments)
        except (ConfigError, DataError, DiskError) as error:
            language = language_of(request)
            problems = getattr(error, "problems", (str(error),))
            words = "<br>".join(escape(say_problem(language, problem)) for problem in problems)
            raise gr.Error(words, title=say(language, "That did not work"), print_exception=False) from None

    return wrapped

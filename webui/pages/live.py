"""Live parts of the page: look.js asks once a second, and the answer holds what has changed since."""

import json
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from webui.locale.i18n import say
from webui.pages.tab_dataset import DatasetTab
from webui.pages.tab_prepare import PrepareTab
from webui.pages.tab_results import ResultsTab
from webui.pages.tab_runs import RunsTab
from webui.runs.context import Context, run_name
from webui.runs.listing import find_runs, stages, state_of, state_of_job
from webui.runs.others import runs_of_others
from webui.runs.run_history import history_of
from webui.widgets import html as show
from webui.widgets import templates

LOG = logging.getLogger(__name__)
LISTS = (gr.Dropdown, gr.CheckboxGroup)  # Gradio must know their choices, by which it checks what is chosen


class Live:
    """The live parts of the page.

    Args:
        now, stop: the strip above the tabs, and its button; spoken: the same for screen readers.
        dataset_field: the training form's, to which new datasets are added as choices.
    """

    def __init__(
        self,
        context: Context,
        tabs: tuple[PrepareTab, DatasetTab, RunsTab, ResultsTab],
        now: gr.HTML,
        stop: gr.Button,
        spoken: gr.HTML,
        dataset_field: gr.Dropdown,
    ):
        self.context = context
        self.prepare, self.dataset, self.runs, self.results = tabs
        self.choosers = [self.runs.chosen, self.dataset.chosen, self.results.chosen]
        self.outputs = [
            now, stop, spoken, *self.prepare.live, *self.runs.outputs, *self.results.live, *self.choosers,
            dataset_field,
        ]  # fmt: skip
        self.lists = [place for place, output in enumerate(self.outputs) if isinstance(output, LISTS)]

    def look(self, seen: str, view: str, run: str, dataset: str, result: str) -> list:
        """Return news as JSON, "" if there are none, then the updates of the lists.

        News are `seen`, which the browser sends back next time, and `news`: new values by the place of their output,
        those of the dataset behind all others.

        Args:
            seen: fingerprints of what the browser shows, "" if it shows nothing yet.
            view: the part of a dataset that it shows.
        """
        jobs = self.context.jobs
        jobs.ensure_worker()
        folders = self.context.places.datasets()
        chosen = {"value": newest(folders)} if folders and seen else {}
        updates = [
            *part(3, self.now_running),
            *part(len(self.prepare.live), self.prepare.look),
            *part(len(self.runs.outputs), lambda: self.runs.look(run)),
            *part(len(self.results.live), lambda: self.results.look(result)),
            chooser(self.runs.choices(), run),
            chooser(self.dataset.choices(), dataset),
            chooser(self.with_files(), result),
            gr.update(choices=folders, **chosen),
        ]
        now = [fingerprint(update) for update in updates]
        before = marks_of(seen, len(now))
        news = {place: update for place, update in enumerate(updates) if now[place] != before[place]}
        lists = [news.pop(place, gr.skip()) for place in self.lists]
        of_dataset = part(len(self.dataset.outputs), lambda: self.dataset.refresh(dataset, view) or [])
        news |= {len(updates) + place: update for place, update in enumerate(of_dataset) if update != gr.skip()}
        return [json.dumps({"seen": now, "news": news}) if now != before or news else "", *lists]

    def with_files(self) -> list[str]:
        """Return the runs that have saved a LoRA."""
        runs = find_runs(self.context.places.projects, self.context.jobs)
        return [run_name(run) for run in runs if stages(run)]

    def now_running(self) -> list:
        """Return the strip above the tabs (the job and its progress), the stop button, and the spoken text."""
        jobs = self.context.jobs
        job = jobs.running()
        others = runs_of_others(jobs) if job is None else []
        if job is None and not others:
            words = say("Nothing is running at the moment.")
            stop = gr.update(value=say("Stop"), interactive=False)
            return [templates.runs.now(words), stop, words]
        run = Path(job.target) if job and job.kind == "train" else others[0] if others else None
        words = show.words_for(job) if job else say("Training {name}", name=others[0].name)
        state, steps = state_of_job(jobs, job) if job else "", None
        if run is not None:
            run_state = state_of(run, jobs)
            state, steps = run_state.state, (run_state.step, history_of(run).total_steps)
        waiting = len(jobs.waiting())
        more = say("{count} waiting", count=waiting) if waiting else ""
        more = more if job else say("not started from this page")
        is_stopping = job is not None and jobs.is_stopping(job)
        stop = say("End it now") if is_stopping else say("Stop")
        html, spoken = templates.runs.now(words, state, more, steps), show.spoken(words, state, *(steps or (0, 0)))
        return [html, gr.update(value=stop, interactive=job is not None), spoken]


def marks_of(seen: str, count: int) -> list:
    """Return the fingerprints sent by a browser; a list of None if they are not ours."""
    try:
        marks = json.loads(seen or "[]")
    except ValueError:
        marks = []
    return marks if isinstance(marks, list) and len(marks) == count else [None] * count


_told: set[str] = set()
_PROCESS = secrets.token_hex(8)


def part(count: int, make: Callable[[], list]) -> list:
    """Return the values of a part of the page; after an unexpected error its first output shows that.

    Other parts go on. The traceback is logged once for each error.

    Args:
        count: of its outputs; `make` may return none if nothing is new.
    """
    try:
        return make() or [gr.skip()] * count
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        if words not in _told:
            _told.add(words)
            LOG.exception("part of the page cannot be shown")
        return [templates.parts.failure(words), *[gr.skip()] * (count - 1)]


def chooser(names: list[str], chosen: str | None) -> dict:
    """Return an update of the choices. A valid choice is left alone: it may have changed since the request."""
    if chosen in names:
        return gr.update(choices=names)
    return gr.update(choices=names, value=names[0] if names else None)


def newest(folders: list[str]) -> str:
    """Return the dataset that was prepared last."""

    def changed(folder: str) -> float:
        try:
            return (Path(folder) / "metadata.jsonl").stat().st_mtime
        except OSError:  # it is gone meanwhile
            return 0.0

    return max(folders, key=changed)


def fingerprint(value: object) -> int:
    """Return a short hash of a value, since every request carries all of them.

    It differs between processes: after a restart Gradio has forgotten the choices it gave and must get them again.
    """
    return hash((_PROCESS, repr(value))) % 2**32

"""The tab that shows one run live, stops and resumes it, and lists the waiting jobs."""

from functools import partial
from pathlib import Path

import gradio as gr

from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.requests import FILES
from webui.figures.run_table import prompts_of
from webui.locale.i18n import T, say
from webui.pages.run_table import RunTable
from webui.runs.context import Context, run_name
from webui.runs.launch import read_config, train_job
from webui.runs.listing import RunState, console_lines, find_runs, samples_of, stages, state_of
from webui.runs.run_history import history_of
from webui.settings.fields import fields_of, number
from webui.widgets import html as show
from webui.widgets import templates
from webui.widgets.events import QUIET, show_errors, tell


class RunsTab:
    """A run and the queue; `look` fills `outputs` for the chosen run."""

    def __init__(self, context: Context):
        self.context = context
        self.waiting = gr.HTML(elem_id="queue", padding=False)
        with gr.Row(visible=False, elem_classes="actions") as self.queue_row:
            self.waiting_job = gr.Dropdown([], label=T("Waiting"), elem_id="queue-job", scale=2)
            self.up = gr.Button(T("Move up"), size="sm", elem_id="queue-up")
            self.down = gr.Button(T("Move down"), size="sm", elem_id="queue-down")
            self.cancel = gr.Button(T("Cancel"), size="sm", elem_id="queue-cancel")
        self.chosen = gr.Dropdown(self.choices(), label=T("Run"), elem_id="run-chosen")
        self.progress = gr.HTML(elem_id="run-progress", padding=False)
        with gr.Row(visible=False, elem_classes="actions") as self.go_on_row:
            self.go_on = gr.Button(T("Next: try and download the LoRA"), variant="primary", elem_id="run-go-on")
        with gr.Row(visible=False, elem_classes="actions") as self.stop_row:
            self.stop = gr.Button(T("Stop"), variant="stop", elem_id="run-stop", scale=0, min_width=160)
            self.save_now = gr.Button(T("Save now"), elem_id="run-save-now", scale=0, min_width=160)
            self.draw_now = gr.Button(T("Draw samples now"), elem_id="run-draw-now", scale=0, min_width=240)
        with gr.Row(visible=False, elem_classes="actions") as self.resume_row:
            self.checkpoint = gr.Dropdown([], label=T("Resume from"), interactive=True, elem_id="run-checkpoint")
            self.until = gr.Textbox(
                label=T("Until epoch"), placeholder=T("as planned"), max_lines=1, elem_id="run-until"
            )
            self.resume = gr.Button(T("Resume"), elem_id="run-resume", scale=0, min_width=160)
            self.again = gr.Button(T("New run with its settings"), elem_id="run-again", scale=0, min_width=280)
        self.plots = gr.HTML(elem_id="run-plots", padding=False)
        self.samples = gr.HTML(elem_id="run-samples", padding=False)
        self.table = RunTable(context, self.chosen)
        with gr.Accordion(T("What happened"), open=False):
            self.happened = gr.HTML(elem_id="run-log", **show.CONSOLE)
        with gr.Accordion(T("Console output"), open=False):
            self.console = gr.HTML(elem_id="run-console", **show.CONSOLE)
        self.outputs = [
            self.progress, self.go_on_row, self.stop_row, self.stop, self.resume_row, self.resume, self.checkpoint,
            self.plots, self.samples, self.happened, self.console, self.waiting, self.queue_row, self.waiting_job,
        ]  # fmt: skip
        self.stop.click(show_errors(self.ask_to_stop), [self.chosen], None, **QUIET)
        for button, what in ((self.save_now, "save"), (self.draw_now, "sample")):
            button.click(show_errors(partial(self.ask, what)), [self.chosen], None, **QUIET)
        self.resumed = self.resume.click(
            show_errors(self.continue_run), [self.chosen, self.checkpoint, self.until], None, **QUIET
        )
        for button, by in ((self.up, -1), (self.down, 1)):
            button.click(partial(self.move, by), [self.waiting_job], None, **QUIET)
        self.cancel.click(
            lambda job_id: bool(job_id) and self.context.jobs.cancel(job_id), [self.waiting_job], None, **QUIET
        )

    def choices(self) -> list[str]:
        return [run_name(run) for run in find_runs(self.context.places.projects, self.context.jobs)]

    def look(self, name: str | None) -> list:
        """Return the values of the outputs."""
        jobs = self.context.jobs
        waiting = jobs.waiting()
        jobs_waiting = [(show.words_for(job), job.id) for job in waiting]
        queue = [
            templates.runs.queue(jobs_waiting),
            gr.update(visible=bool(waiting)),
            gr.update(choices=jobs_waiting, value=waiting[0].id if waiting else None),
        ]
        run = self.context.run_of(name)
        hidden = gr.update(visible=False)
        if run is None or name is None:
            empty = templates.parts.empty(say("No runs yet. Start one under Train."))
            return [empty, hidden, hidden, gr.skip(), hidden, hidden, gr.skip(), "", "", "", "", *queue]
        state, history = state_of(run, jobs), history_of(run)
        job = jobs.newest("train", of=run)
        stop_words = say("End it now") if state.state == "stopping" else say("Stop")
        saved = [stage for stage in stages(run) if stage != "final"]
        return [
            show.progress(name, state, history),
            gr.update(visible=state.state in ("done", "stopped") and bool(stages(run))),
            gr.update(visible=state.is_active or state.state == "waiting"),
            gr.update(value=stop_words),
            gr.update(visible=can_resume(state) and self.config_path(run) is not None),
            gr.update(visible=(run / "config.yaml").exists()),
            gr.update(choices=saved, value=saved[0] if saved else None),
            templates.runs.plots([name]),
            show.gallery(run / "samples", samples_of(run), *prompts_of(run, history)),
            show.happened(history),
            show.console(console_lines(jobs, job) if job else []),
            *queue,
        ]

    def ask_to_stop(self, name: str | None) -> None:
        run = self.context.run_of(name)
        job = self.context.jobs.newest("train", of=run) if run is not None else None
        if job is not None and not job.is_over:
            self.context.jobs.stop(job)
        elif run is not None and state_of(run, self.context.jobs).is_active:
            (run / "stop").touch()  # started from a shell: only its folder is shared

    def ask(self, what: str, name: str | None) -> None:
        """Create the file in the run's folder that requests a save or samples."""
        run = self.context.run_of(name)
        if run is None or state_of(run, self.context.jobs).state not in ("training", "sampling"):
            raise ConfigError(say("This run is not training at the moment."))
        (run / FILES[what]).touch()
        tell(say("Requested: it happens after the next step."))

    def continue_run(self, name: str | None, checkpoint: str | None, until: str | None) -> None:
        config, run = self.settings_of(name), self.context.run_of(name)
        if run is None or not can_resume(state_of(run, self.context.jobs)):
            return
        changes: dict = {"output_dir": str(run), "resume_from_checkpoint": checkpoint or "latest"}
        if until := (until or "").strip():
            epochs = number(fields_of(TrainConfig)["num_train_epochs"], until)
            changes |= {"num_train_epochs": epochs, "max_train_steps": None}
        self.context.jobs.add(train_job(self.context.jobs, replace_flat(config, **changes), processes_of(run)))

    def settings_of(self, name: str | None) -> TrainConfig:
        """Return the settings that a run was started with.

        Raises:
            ConfigError: no such run, or another version of the trainer wrote it.
        """
        path = self.config_path(self.context.need_run(name))
        if path is None:
            raise ConfigError("choose a run first")
        return read_config(TrainConfig, path)

    def config_path(self, run: Path) -> Path | None:
        """Return the path of a run's settings; those of a run that failed before it had a folder lie with its job."""
        job = self.context.jobs.newest("train", of=run)
        paths = [run / "config.yaml", *([self.context.jobs.folder_of(job.id) / "config.yaml"] if job else [])]
        return next((path for path in paths if path.exists()), None)

    def move(self, by: int, job_id: str | None) -> None:
        if job_id:
            self.context.jobs.move(job_id, by)


def can_resume(state: RunState) -> bool:
    return state.state in ("done", "stopped", "failed", "killed", "cancelled")


def processes_of(run: Path) -> int:
    """Return the number of processes that the run last used."""
    started = [event for event in history_of(run).messages if event["event"] == "started"]
    return started[-1].get("processes", 1) if started else 1

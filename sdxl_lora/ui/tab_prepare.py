"""The tab that turns a folder of pictures into a dataset."""

from functools import partial
from html import escape
from pathlib import Path

import gradio as gr

from sdxl_lora.config import PreprocessConfig
from sdxl_lora.ui.commands import prepare_job
from sdxl_lora.ui.context import Context, telling
from sdxl_lora.ui.forms import Form, preprocess_config
from sdxl_lora.ui.i18n import T, language_of, say
from sdxl_lora.ui.jobs import Job, Jobs
from sdxl_lora.ui.runs import console_lines, last_error
from sdxl_lora.ui.settings_box import SettingsBox
from sdxl_lora.ui.show import level_of, log_lines, pill
from sdxl_lora.ui.widgets import form

KINDS = {
    "prepare": "Preparing {name}",
    "caption": "A new caption in {name}",
    "train": "Training {name}",
    "draw": "Drawing with {name}",
}


class PrepareTab:
    """Its form, its button, and the card of the newest job."""

    def __init__(self, context: Context, project: gr.Dropdown):
        self.context = context
        gr.Markdown(T("Pictures in, a dataset out: cropped to sizes that SDXL knows, each with a caption."))
        widgets = form(PreprocessConfig, {}, {"output_dir": "dataset"}, "prepare")
        widgets["auto_caption"] = gr.Checkbox(
            value=True,
            label=T("Auto-caption"),
            info=T("Describe pictures that have no caption file. Without it they get the concept as their caption."),
            elem_id="prepare-auto_caption",
        )
        self.form = Form(PreprocessConfig, project, widgets, partial(preprocess_config, context.places))
        self.problems = gr.HTML(elem_id="prepare-problems", padding=False, render=False)
        self.settings = SettingsBox(self.form, "prepare", self.problems)
        self.problems.render()
        with gr.Row(elem_classes="actions"):
            self.button = gr.Button(T("Prepare"), variant="primary", elem_id="prepare")
        self.card = gr.HTML(elem_id="prepare-card", padding=False)
        self.button.click(
            telling(self.start),
            self.form.inputs,
            [self.problems, self.card],
            show_progress="hidden",
            api_visibility="private",
        )

    def start(self, request: gr.Request, *entered) -> tuple[str, str]:
        language = language_of(request)
        complaint = self.form.complaint(language, *entered)
        if not complaint:
            self.job(*entered)
        return complaint, job_card(language, self.context.jobs)

    def job(self, *entered) -> Job:
        """Queues the preparation that the form asks for."""
        config = self.form.config(*entered)
        return self.context.start(prepare_job(self.context.jobs, config))


def job_card(language: str, jobs: Jobs) -> str:
    """The newest job of preparing or captioning: how it stands and what it prints."""
    job = next((job for job in reversed(jobs.all()) if job.kind in ("prepare", "caption")), None)
    if job is None:
        return ""
    words = escape(say(language, KINDS[job.kind], name=Path(job.target).name))
    lines = [("", level_of(line), line) for line in reversed(console_lines(jobs, job))]
    state = state_of_job(jobs, job)
    failure = f'<p class="ending failed">{escape(last_error(jobs, job))}</p>' if state == "failed" else ""
    is_open = "open" if state in ("running", "failed") else ""
    return (
        f'<div class="card"><div class="head"><strong>{words}</strong>{pill(language, state)}</div>{failure}'
        f"<details {is_open}><summary>{escape(say(language, 'Console'))}</summary>{log_lines(language, lines)}"
        "</details></div>"
    )


def state_of_job(jobs: Jobs, job: Job) -> str:
    """One of show.STATES."""
    if job.state == "running":
        return "stopping" if jobs.is_stopping(job) else "running"
    if job.state == "ended":
        if jobs.is_stopping(job) and job.exit_code != 0:
            return "stopped"
        return "done" if job.exit_code == 0 else "failed"
    return job.state

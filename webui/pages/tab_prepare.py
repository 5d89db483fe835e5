"""The tab that turns a folder of images into a dataset."""

from functools import partial

import gradio as gr

from sdxl_lora.config.preprocess import PreprocessConfig
from webui.datasets.folders import image_folders
from webui.locale.i18n import T
from webui.pages.upload_box import UploadBox
from webui.runs.context import Context
from webui.runs.jobs import Job
from webui.runs.launch import prepare_job
from webui.runs.listing import console_lines, state_of_job
from webui.widgets.events import QUIET, show_errors
from webui.widgets.forms import Form, preprocess_config
from webui.widgets.html import CONSOLE, console, job_card
from webui.widgets.settings_box import SettingsBox
from webui.widgets.widgets import form

KINDS = ("prepare", "caption")


class PrepareTab:
    """The form, its button, and the card of the newest job."""

    def __init__(self, context: Context, project: gr.Dropdown):
        self.context = context
        gr.Markdown(T("Turns images into a dataset: cropped to sizes that SDXL knows, each with a caption."))
        self.upload = UploadBox(context, project)
        folders = {"input_dir": image_folders(context.places)}
        widgets = form(PreprocessConfig, folders, {"output_dir": "dataset"}, "prepare")
        widgets["auto_caption"] = gr.Checkbox(
            value=True,
            label=T("Auto-caption"),
            info=T("Describe images that have no caption file. If off, they get the concept as their caption."),
            elem_id="prepare-auto_caption",
        )
        self.form = Form(PreprocessConfig, project, widgets, partial(preprocess_config, context.places))
        self.upload.listen(self.form)
        self.problems = gr.HTML(elem_id="prepare-problems", padding=False, render=False)
        self.settings = SettingsBox(self.form, "prepare", self.problems)
        self.problems.render()
        with gr.Row(elem_classes="actions"):
            self.button = gr.Button(T("Prepare"), variant="primary", elem_id="prepare")
        self.card = gr.HTML(elem_id="prepare-card", padding=False)
        self.go_on = gr.Button(T("Next: check the images and captions"), visible=False, elem_id="prepare-go-on")
        with gr.Accordion(T("Console output"), open=False):
            self.console = gr.HTML(**CONSOLE)
        self.live = [self.card, self.go_on, self.console]
        self.button.click(show_errors(self.start), self.form.inputs, [self.problems, self.card], **QUIET)

    def start(self, *entered) -> tuple[str, str]:
        complaint = self.form.complaint(*entered)
        if not complaint:
            self.job(*entered)
        return complaint, job_card(self.context.jobs, self.context.jobs.newest(*KINDS))

    def look(self) -> list:
        """Return the values of `live` for the newest job of preparing or captioning."""
        jobs = self.context.jobs
        job = jobs.newest(*KINDS)
        lines = console_lines(jobs, job) if job is not None else []
        is_done = job is not None and job.kind == "prepare" and state_of_job(jobs, job) == "done"
        return [job_card(jobs, job), gr.update(visible=is_done), console(lines)]

    def job(self, *entered) -> Job:
        """Queue the preparation that the form asks for."""
        config = self.form.config(*entered)
        return self.context.jobs.add(prepare_job(self.context.jobs, config))

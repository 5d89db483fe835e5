"""The tab that starts trainings: alone, or behind the preparation of their dataset."""

from functools import partial

import gradio as gr

from sdxl_lora.config.train import TrainConfig
from webui.locale.i18n import T
from webui.pages.tab_prepare import PrepareTab
from webui.runs.context import Context
from webui.runs.jobs import Job
from webui.runs.launch import gpu_count, train_job
from webui.widgets.forms import Form, train_config
from webui.widgets.settings_box import SettingsBox
from webui.widgets.widgets import form


class TrainTab:
    """Its form and buttons; page.py listens to these, since what follows is seen under Runs."""

    def __init__(self, context: Context, project: gr.Dropdown, prepare: PrepareTab):
        self.context, self.prepare = context, prepare
        gr.Markdown(
            T("A dataset in, a LoRA out. What is not in view keeps its default, which is what most people use.")
        )
        suggestions = {
            "train_data_dir": context.places.datasets(),
            "pretrained_model_name_or_path": context.places.bases(),
        }
        values = {"pretrained_model_name_or_path": context.places.default_base, "output_dir": ""}
        if context.places.loras is not None:
            values["loras_dir"] = str(context.places.loras)
        widgets = form(TrainConfig, suggestions, values, "train")
        self.form = Form(TrainConfig, project, widgets, partial(train_config, context.places))
        gpus = gpu_count()
        self.processes = gr.Dropdown(
            [(str(number), number) for number in range(1, max(gpus, 1) + 1)],
            value=1,
            label=T("GPUs to use"),
            info=T("Each takes a part of every step's pictures."),
            visible=gpus > 1,
            elem_id="train-processes",
        )
        self.problems = gr.HTML(elem_id="train-problems", padding=False, render=False)
        self.settings = SettingsBox(self.form, "train", self.problems, self.processes)
        self.problems.render()
        with gr.Row(elem_classes="actions"):
            self.button = gr.Button(T("Train"), variant="primary", elem_id="train")
            self.both = gr.Button(T("Prepare and train"), elem_id="prepare-and-train")
        self.inputs = [self.processes, *self.form.inputs]
        self.dataset_at = 1 + list(self.form.widgets).index("train_data_dir")  # among the form's inputs
        self.both_inputs = [*prepare.form.inputs, *self.inputs]

    def start(self, language: str, processes: float, *entered) -> str:
        """Queues the training; or returns what has to be mended first."""
        prepared = {job.target for job in self.context.jobs.all() if job.kind == "prepare" and not job.is_over}
        complaint = self.form.complaint(language, *entered, expected=prepared)
        if not complaint:
            self.queue(processes, None, *entered)
        return complaint

    def start_both(self, language: str, *entered) -> str:
        """Queues the preparation of the dataset, and the training behind it."""
        prepared, processes, trained = self.split(entered)
        dataset = str(trained[self.dataset_at])
        complaint = self.prepare.form.complaint(language, *prepared)
        complaint += self.form.complaint(language, *trained, expected={dataset})
        if not complaint:
            self.queue(processes, self.prepare.job(*prepared), *trained)
        return complaint

    def queue(self, processes: float, after: Job | None, *entered) -> Job:
        config = self.form.config(*entered)
        return self.context.jobs.add(train_job(self.context.jobs, config, int(processes or 1), after))

    def split(self, entered: tuple) -> tuple[tuple, float, tuple]:
        """What belongs to the form of preparing, the number of processes, and the training's form, whose dataset is
        the one that will have been prepared."""
        of_prepare = len(self.prepare.form.inputs)
        prepared, (processes, *trained) = entered[:of_prepare], entered[of_prepare:]
        name = prepared[1 + list(self.prepare.form.widgets).index("output_dir")]
        trained[self.dataset_at] = str(self.context.places.projects / str(prepared[0]) / str(name))
        return prepared, processes, tuple(trained)


def free_name(context: Context, project: str | None) -> str:
    """A name for the next run of a project."""
    number = 1
    while project and (context.places.projects / project / "runs" / f"run-{number}").exists():
        number += 1
    return f"run-{number}"

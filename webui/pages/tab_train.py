"""The tab that starts trainings, alone or after the preparation of their dataset, and estimates them before."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gradio as gr

from preprocess.editing.prepared import read_dataset
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.pace import duration
from webui.figures.plan import Plan, plan_of
from webui.locale.i18n import T, in_page_words, say
from webui.pages.tab_prepare import PrepareTab
from webui.runs.context import Context
from webui.runs.jobs import Job
from webui.runs.launch import gpu_gib, train_job
from webui.runs.others import runs_of_others
from webui.settings.fields import entered_value, fields_of
from webui.settings.presets import CARDS, card_for, preset, prompts_of
from webui.widgets import templates
from webui.widgets.events import QUIET
from webui.widgets.finder import begin_script
from webui.widgets.forms import Form, train_config
from webui.widgets.scripts import script
from webui.widgets.settings_box import SettingsBox
from webui.widgets.widgets import form


class TrainTab:
    """The form and its buttons; page.py listens to these, since the run is shown under Runs."""

    def __init__(self, context: Context, project: gr.Dropdown, prepare: PrepareTab):
        self.context, self.prepare, self.gpus = context, prepare, gpu_gib()
        gr.Markdown(T("Trains a LoRA on a dataset. Choose your subject and graphics card to fill in the settings."))
        self._make_presets()
        suggestions = {
            "train_data_dir": context.places.datasets(),
            "pretrained_model_name_or_path": context.places.bases(),
        }
        values = {"pretrained_model_name_or_path": context.places.default_base, "output_dir": ""}
        if context.places.loras is not None:
            values["loras_dir"] = str(context.places.loras)
        widgets = form(TrainConfig, suggestions, values, "train")
        self.form = Form(TrainConfig, project, widgets, partial(train_config, context.places))
        self.processes = gr.Dropdown(
            [(str(number), number) for number in range(1, max(len(self.gpus), 1) + 1)],
            value=1,
            label=T("GPUs to use"),
            info=T("Each one takes a share of every step's images."),
            visible=len(self.gpus) > 1,
            elem_id="train-processes",
        )
        self.problems = gr.HTML(elem_id="train-problems", padding=False, render=False)
        self.settings = SettingsBox(self.form, "train", self.problems, self.processes)
        self.problems.render()
        with gr.Row(elem_classes="actions"):
            self.button = gr.Button(T("Train"), variant="primary", elem_id="train")
            self.both = gr.Button(T("Prepare and train"), elem_id="prepare-and-train")
            self.ask = gr.Button(T("What will it take?"), elem_id="train-ask")
        self.plan = gr.HTML(elem_id="train-plan", padding=False, js_on_load=script(Path(__file__).with_name("plan.js")))
        self.inputs = [self.processes, *self.form.inputs]
        self.both_inputs = [*prepare.form.inputs, *self.inputs]
        self._listen()

    def _make_presets(self) -> None:
        with gr.Row():
            self.subject = gr.Dropdown(
                [
                    ("—", ""),
                    (T("A person, animal or object, 10 to 40 images"), "character"),
                    (T("A style, 30 to 200 images"), "style"),
                    (T("With tags, on Illustrious, NoobAI or Pony"), "anime"),
                    (T("On a base that predicts a rectified flow"), "flow"),
                ],
                value="", label=T("Subject"), filterable=False, elem_id="train-subject",
            )  # fmt: skip
            sizes = [(f"{size} GB", name) for name, size in CARDS.items() if name != "t4"]
            self.card = gr.Dropdown(
                [("—", ""), *sizes, (T("T4 on Colab or Kaggle"), "t4")],
                value=(card_for(self.gpus[0]) if self.gpus else None) or "",
                label=T("Graphics card"), filterable=False, elem_id="train-card",
            )  # fmt: skip

    def _listen(self) -> None:
        """Show a preset's values at once; then, if there is a dataset, the estimate of such a training."""
        choice = [self.subject, self.card]
        names = list(preset("", ""))
        fields = [self.form.widgets[name] for name in names]
        prompts, dataset = (self.form.widgets[name] for name in ("validation_prompt", "train_data_dir"))
        asked = [self.card, *self.inputs]
        for chooser in choice:
            shown = chooser.input(preset_values, choice, fields, **QUIET)
            shown.then(None, fields, None, js=begin_script("train", names), **QUIET).then(
                self.suggested, [self.subject, dataset, prompts], prompts, **QUIET
            ).then(self.told_if_complete, asked, [self.plan, self.problems], **QUIET)
        self.ask.click(self.told, asked, [self.plan, self.problems], **QUIET)

    def suggested(self, subject: str | None, dataset: str | None, prompts: str | None):
        """Return the preset's prompts with the dataset's trigger word, unless there are prompts already."""
        folders = self.context.places.datasets()
        if not subject or prompts or dataset not in folders:
            return gr.skip()
        word = read_dataset(Path(dataset)).trigger_word
        return "\n".join(prompts_of(subject, word)) if word else gr.skip()

    def told_if_complete(self, card: str, *asked) -> Iterator[list]:
        """Yield the estimate; nothing for an incomplete form."""
        yield from self.told(card, *asked, is_asked=False)

    def told(self, card: str, processes: float, *entered, is_asked: bool = True) -> Iterator[list]:
        """Yield the estimate in a sentence, after some seconds of counting; or the form's problems."""
        complaint = self.form.complaint(*entered)
        if complaint:
            yield ["", complaint if is_asked else gr.skip()]
            return
        yield [templates.parts.hint(say("Estimating: this takes a few seconds ...")), ""]
        is_busy = self.context.jobs.running() is not None or bool(runs_of_others(self.context.jobs))
        try:
            plan = plan_of(self.form.config(*entered), int(processes or 1), is_busy)
        except ConfigError as error:
            yield [templates.parts.problem(in_page_words(TrainConfig, str(error))), ""]
            return
        yield [plan_html(plan, CARDS.get(card) or next(iter(self.gpus), None)), ""]

    def start(self, processes: float, *entered) -> str:
        """Queue the training, or return the problems."""
        prepared = {job.target for job in self.context.jobs.all() if job.kind == "prepare" and not job.is_over}
        complaint = self.form.complaint(*entered, expected=prepared)
        if not complaint:
            self.queue(processes, None, *entered)
        return complaint

    def start_both(self, *entered) -> str:
        """Queue the preparation of the dataset, and the training on it after that; or return the problems."""
        count = len(self.prepare.form.inputs)
        prepared, (processes, project, *trained) = entered[:count], entered[count:]
        name = self.prepare.form.values(*prepared)["output_dir"]
        dataset = str(self.context.places.projects / str(prepared[0]) / str(name))
        values = {**self.form.values(project, *trained), "train_data_dir": dataset}.values()
        complaint = self.prepare.form.complaint(*prepared)
        complaint += self.form.complaint(project, *values, expected={dataset})
        if not complaint:
            self.queue(processes, self.prepare.job(*prepared), project, *values)
        return complaint

    def queue(self, processes: float, after: Job | None, *entered) -> Job:
        config = self.form.config(*entered)
        return self.context.jobs.add(train_job(self.context.jobs, config, int(processes or 1), after))


def preset_values(subject: str | None, card: str | None) -> list:
    """Return the values of the fields that presets set."""
    fields = fields_of(TrainConfig)
    return [entered_value(fields[name], value) for name, value in preset(subject, card).items()]


def plan_html(plan: Plan, card_gib: float | None) -> str:
    """Return a plan in a sentence with its warnings.

    Args:
        card_gib: memory of the card that is to train; None if unknown.
    """
    here = len(plan.seconds) == 1
    times = ", ".join(duration(s) if here else f"{duration(s)} ({name})" for name, s in plan.seconds.items())
    return templates.runs.plan(plan, times, card_gib if card_gib and plan.gib > card_gib else None)


def free_name(context: Context, project: str | None) -> str:
    """Return a name for the next run of a project."""
    number = 1
    while project and (context.places.projects / project / "runs" / f"run-{number}").exists():
        number += 1
    return f"run-{number}"

"""The tab for finished LoRAs: draw with one beside the base, download its files, copy them to a client's folder."""

from pathlib import Path

import gradio as gr

from sdxl_lora.errors import ConfigError
from webui.figures.run_table import settings_of
from webui.locale.i18n import T, say
from webui.pages.recommend_box import RecommendBox
from webui.pages.tools_box import ToolsBox
from webui.runs.context import Context
from webui.runs.drawings import drawing_request, image_path, read_request
from webui.runs.jobs import Job
from webui.runs.launch import draw_job
from webui.runs.listing import lora_files, stages
from webui.runs.loras import NEWEST, copy_lora_to, stage_of
from webui.server.served import publish
from webui.widgets import html as show
from webui.widgets import templates
from webui.widgets.events import QUIET, show_errors, tell


class ResultsTab:
    def __init__(self, context: Context):
        self.context = context
        self.chosen = gr.Dropdown([], label=T("Run"), elem_id="result-run")
        self.stages = gr.CheckboxGroup([], label=T("LoRA saved at"), elem_id="result-stages")
        with gr.Group():
            self.prompts = gr.Textbox(
                label=T("Prompts"), lines=2, placeholder=T("one per line"), elem_id="result-prompts"
            )
            with gr.Row():
                self.weights = gr.Textbox(
                    "0.6 1", label=T("Weights, besides the base"), max_lines=1, elem_id="result-weights", min_width=180
                )
                self.seed = gr.Number(0, label=T("Seed"), precision=None, elem_id="result-seed", min_width=100)
                self.steps = gr.Number(25, label=T("Denoising steps"), elem_id="result-steps", min_width=100)
                self.guidance = gr.Number(5, label=T("Guidance"), elem_id="result-guidance", min_width=100)
                self.side = gr.Number(1024, label=T("Side in pixels"), elem_id="result-side", min_width=100)
        with gr.Row(elem_classes="actions"):
            self.draw = gr.Button(T("Draw"), variant="primary", elem_id="result-draw")
        self.drawn = gr.HTML(elem_id="result-drawn", padding=False)
        self.about = gr.HTML(elem_id="result-about", padding=False)
        self.files = gr.File(
            label=T("For ComfyUI, A1111, Forge and InvokeAI; and for diffusers"), file_count="multiple",
            interactive=False, visible=False, elem_id="result-files",
        )  # fmt: skip
        with gr.Row(elem_classes="actions", equal_height=True):
            self.stage = gr.Dropdown([], label=T("Version"), elem_id="result-stage")
            self.fetch = gr.Button(T("Show files to download"), elem_id="result-fetch")
            self.copy = gr.Button(T("Copy to the LoRA folder"), elem_id="result-copy")
        self.recommend = RecommendBox(context, self.chosen)
        self.tools = ToolsBox(context, self.chosen, self.stage)
        self.live = [self.drawn, self.stages, self.stage, self.about, self.recommend.told, self.tools.told]
        chosen = [self.stages, self.stage, self.files, self.about, self.side]
        self.chosen.change(show_errors(self.choose), [self.chosen], chosen, **QUIET)
        asked = [
            self.chosen, self.stages, self.prompts, self.weights, self.seed, self.steps, self.guidance, self.side,
        ]  # fmt: skip
        self.draw.click(show_errors(self.start), asked, None, **QUIET)
        self.fetch.click(show_errors(self.offer), [self.chosen, self.stage], self.files, **QUIET)
        self.copy.click(show_errors(self.copy_to_loras), [self.chosen, self.stage], None, **QUIET)

    def choose(self, name: str | None) -> list:
        run = self.context.run_of(name)
        choices = stage_choices(run)
        return [
            gr.CheckboxGroup(choices, value=[NEWEST] if choices else []),
            gr.Dropdown(choices, value=NEWEST if choices else None),
            gr.File(None, visible=False),
            templates.runs.files(lora_files(run)) if run is not None else "",
            settings_of(run).get("resolution", 1024) if run is not None else gr.skip(),
        ]

    def start(self, name: str | None, chosen: list[str], *asked) -> None:
        run = self.context.need_run(name, saved=True)
        chosen = list(dict.fromkeys(stage_of(run, stage) for stage in chosen or ()))
        self.context.jobs.add(draw_job(self.context.jobs, run, drawing_request(run, chosen, *asked)))
        tell(say("The images appear here as they are drawn."))

    def look(self, name: str | None) -> list:
        """Return the values of `live`."""
        run = self.context.run_of(name)
        choices = stage_choices(run)
        about = templates.runs.files(lora_files(run)) if run is not None else ""
        lists = [gr.update(choices=choices), gr.update(choices=choices)]
        told = [self.recommend.look(run), self.tools.look(run)]
        return [self.drawn_html(run), *lists, about, *told]

    def drawn_html(self, run: Path | None) -> str:
        """Return the newest drawing of a run as HTML."""
        if run is None:
            return templates.parts.empty(say("No run has saved anything yet."))
        jobs = self.context.jobs
        job = jobs.newest("draw", of=run)
        request = read_request(jobs.folder_of(job.id)) if job is not None else None
        if job is None or request is None:
            return templates.parts.empty(say("Nothing drawn yet."))
        return drawing_html(self.context, job, request)

    def offer(self, name: str | None, stage: str | None):
        """Publish the files of one stage for download; nothing else of the run is served."""
        run = self.context.need_run(name, saved=True)
        stage = stage_of(run, stage)
        folder = stages(run)[stage]
        about = say("For ComfyUI, A1111, Forge and InvokeAI; and for diffusers")
        label = f"{run.name}, {stage_words(stage)} · {about}"  # files of all stages have the same names
        return gr.File([publish(path, folder) for path in lora_files(folder)], visible=True, label=label)

    def copy_to_loras(self, name: str | None, stage: str | None) -> None:
        run = self.context.need_run(name, saved=True)
        to = self.context.places.loras
        if to is None or not to.is_dir():
            raise ConfigError(say("The LoRA folder {path} does not exist: create it first.", path=to))
        copied = copy_lora_to(to, run, stage_of(run, stage))
        tell(say("Copied to {path}.", path=copied))


def stage_choices(run: Path | None) -> list[tuple[str, str]]:
    """Return the stages of a run with their labels; the newest has a fixed value, so that it stays chosen."""
    names = list(stages(run)) if run is not None else []
    choices = [(stage_words(stage), stage) for stage in names]
    if names and names[0] != "final":
        choices[0] = (say("the newest: {stage}", stage=choices[0][0]), names[0])
    return [(words, NEWEST if place == 0 else stage) for place, (words, stage) in enumerate(choices)]


def stage_words(stage: str) -> str:
    if stage == "final":
        return say("the end")
    return say("step {step}", step=stage.rpartition("-")[2])


def drawing_html(context: Context, job: Job, request: dict) -> str:
    """Return a row for each prompt and stage: the base, then each weight."""
    folder = context.jobs.folder_of(job.id)
    weights = request["weights"]
    columns = [say("base"), *(say("weight {weight}", weight=f"{w:g}") for w in weights)]
    rows = [
        (
            prompt,
            stage_words(stage),
            [image_path(folder, number, "", 0.0), *(image_path(folder, number, stage, w) for w in weights)],
        )
        for number, prompt in enumerate(request["prompts"])
        for stage in request["stages"]
    ]
    return show.standing(context.jobs, job) + templates.runs.drawing(columns, rows)

"""The whole page, as an app of its own or as a tab of another Gradio app.

with gr.Blocks() as app:
    with gr.Tabs():
        create_tab(before_training=unload_my_model, after_training=load_it_again)
app.launch()
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import get_blocks_context

from preprocess.editing.prepared import read_dataset
from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from webui.host import adopt
from webui.locale.i18n import I18N, T, say, say_label
from webui.pages.asked import SETTINGS, Asked
from webui.pages.live import Live, newest
from webui.pages.tab_dataset import CARDS, DatasetTab
from webui.pages.tab_prepare import PrepareTab
from webui.pages.tab_results import ResultsTab
from webui.pages.tab_runs import RunsTab
from webui.pages.tab_train import TrainTab, free_name
from webui.runs.context import Context, dataset_name, run_name
from webui.runs.hosts import Host
from webui.runs.jobs import Jobs
from webui.runs.launch import read_config
from webui.runs.listing import find_runs, state_of
from webui.settings.workspace import Workspace, load_workspace
from webui.widgets.events import QUIET, show_errors, tell
from webui.widgets.forms import Form
from webui.widgets.scripts import script

__all__ = ["I18N", "create_page", "create_tab"]

SECONDS_BETWEEN_LOOKS = 1.0
SUGGESTED_PROMPTS = 2
CURTAIN = "@keyframes rise{to{visibility:visible}}.sdxl-lora{visibility:hidden;animation:rise 0s 10s forwards}"
HERE = Path(__file__).parent
PLOTTING = HERE / "widgets" / "uplot"  # uPlot, MIT
STYLE = "".join(path.read_text(encoding="utf-8") for path in (PLOTTING / "uPlot.min.css", HERE / "style.css"))
SCRIPTS = ("uplot/uPlot.iife.min", "images", "plots", "paint", "marks")


def nothing() -> None:
    """Do nothing: default of a host without a model to free and load again."""


def create_page(places: Workspace) -> gr.Blocks:
    """Return the page as an app of its own."""
    # The cache belongs to this process alone; files offered for download are deleted after a day.
    with gr.Blocks(title="SDXL LoRA", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        Page(Context(places, Jobs(places.projects)))
    return page


def create_tab(
    before_training: Callable[[], None] = nothing,
    places: Workspace | None = None,
    title: str = "SDXL LoRA",
    after_training: Callable[[], None] = nothing,
) -> gr.Tab:
    """Return the page as a tab; call it inside `gr.Tabs()`. It brings its own texts, in all its languages.

    Args:
        before_training: called when a job of the page that may need the GPU is about to start, so that the host can
            free its own model. An exception from it fails that job and is its reason.
        places: default: the settings file and the environment.
        after_training: called when that job is over, however it ended.
    """
    places = places or load_workspace()
    places.make_folders()
    jobs = Jobs(places.projects)
    if (before_training, after_training) != (nothing, nothing):
        Host(jobs, before_training, after_training).listen()
    with gr.Tab(title, id="sdxl-lora") as tab:
        Page(Context(places, jobs))
    return tab


class Page:
    def __init__(self, context: Context):
        self.context = context
        others = set(get_blocks_context().blocks)
        gr.HTML(f"<style>{STYLE}</style>", padding=False, elem_classes="style")
        # Hidden until `open` has filled it, for some seconds at most: earlier input would be overwritten.
        self.curtain = gr.HTML(f"<style>{CURTAIN}</style>", padding=False, elem_classes="style")
        with gr.Column(elem_classes="sdxl-lora"):
            news = 'window.sdxlLoraNews = () => trigger("news");'
            scripts = [*(HERE / "widgets" / f"{name}.js" for name in SCRIPTS), HERE / "pages" / "watch.js"]
            js = "\n".join([news, *(f"{{{script(one)}}}" for one in scripts)])
            self.scripts = gr.HTML(js_on_load=js, padding=False, elem_classes="style")
            gr.Markdown(T("# A LoRA of your images"))
            with gr.Row(elem_classes="top", equal_height=True):
                names = context.places.project_names()
                self.project = gr.Dropdown(
                    names,
                    value=names[0],
                    allow_custom_value=True,
                    label=T("Project folder"),
                    info=T("Choose one, or type a new name"),
                    elem_id="project",
                    scale=1,
                )
                with gr.Column(scale=2, min_width=260):
                    self.now = gr.HTML(elem_id="now", padding=False)
                self.stop = gr.Button(
                    T("Stop"), variant="stop", interactive=False, elem_id="stop", scale=0, min_width=110
                )
            live = "element.setAttribute('aria-live', 'polite')"
            self.spoken = gr.HTML(js_on_load=live, elem_id="spoken", padding=False)
            with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as self.tabs:
                with gr.Tab(T("1 · Prepare"), id="prepare"):
                    self.prepare = PrepareTab(context, self.project)
                with gr.Tab(T("2 · Dataset"), id="dataset"):
                    self.dataset = DatasetTab(context)
                with gr.Tab(T("3 · Train"), id="train"):
                    self.train = TrainTab(context, self.project, self.prepare)
                self.dataset.listen(self.train.form)
                with gr.Tab(T("4 · Runs"), id="runs"):
                    self.runs = RunsTab(context)
                with gr.Tab(T("5 · Results"), id="results"):
                    self.results = ResultsTab(context)
        self.session = gr.Textbox(visible=False)
        tabs = (self.prepare, self.dataset, self.runs, self.results)
        self.live = Live(context, tabs, self.now, self.stop, self.spoken, self.train.form.widgets["train_data_dir"])
        self._listen()
        adopt(set(get_blocks_context().blocks) - others)

    def _listen(self) -> None:
        root: Any = get_blocks_context()
        root = getattr(root, "root_block", root)
        choosers = self.live.choosers
        forms = [*self.prepare.form.widgets.values(), *self.train.form.widgets.values()]
        of_run = [self.runs.table.note, self.runs.table.name]
        shown = [self.curtain, self.session, self.tabs, self.project, *choosers, *of_run, *forms]
        root.load(self.open, None, shown, **QUIET)
        self.named = [self.project, self.train.form.widgets["output_dir"]]
        self.project.change(self.name_run, self.named, self.named[1], **QUIET)
        seen_after = [self.train.problems, self.tabs, self.runs.chosen, self.train.form.widgets["output_dir"]]
        for button, inputs, start in (
            (self.train.button, self.train.inputs, self.train.start),
            (self.train.both, self.train.both_inputs, self.train.start_both),
        ):
            button.click(show_errors(partial(self.start, start)), [*inputs, *self.named], seen_after, **QUIET)
        self.runs.again.click(
            show_errors(self.use_settings), [self.runs.chosen],
            [self.tabs, self.project, *self.train.form.widgets.values()], **QUIET,
        )  # fmt: skip
        self.stop.click(self.stop_what_runs, None, None, **QUIET)
        self.prepare.go_on.click(self.to_captions, None, [self.tabs, self.dataset.chosen], **QUIET)
        named = ("train_data_dir", "validation_prompt", "masked_loss")
        fields = [self.train.form.widgets[name] for name in named]
        self.dataset.go_on.click(
            show_errors(self.to_training), [self.dataset.chosen, *fields[1:]], [self.tabs, *fields], **QUIET
        )
        self.runs.go_on.click(self.to_results, [self.runs.chosen], [self.tabs, self.results.chosen], **QUIET)
        asked = [gr.Textbox(visible=False) for _ in ("seen", "view", "run", "dataset", "result")]
        lists = [self.live.outputs[place] for place in self.live.lists]
        asked[0].change(
            self.live.look, asked, [gr.Textbox(visible=False), *lists], api_name="sdxl_lora_look", **SETTINGS
        )
        Asked(self.context)
        # Two events, since one with many outputs is slow in the browser even when it changes none.
        gr.Timer(SECONDS_BETWEEN_LOOKS).tick(
            None,
            [self.session, self.dataset.view, *choosers],
            None,
            js=script(
                HERE / "pages" / "look.js",
                DATASET_AT=len(self.live.outputs),
                DATASET_OUTPUTS=len(self.dataset.outputs),
                LISTS=self.live.lists,  # Gradio itself returns these
                CARDS=CARDS,
            ),
            show_progress_on=(),
        )
        outputs = [*self.live.outputs, *self.dataset.outputs]
        self.scripts.news(None, None, outputs, js="() => window.sdxlLoraLooks.news.splice(0)", **QUIET)

    def open(self, request: gr.Request) -> list:
        """Return the contents of a freshly opened page: the active or latest project and run, and the last settings."""
        jobs = self.context.jobs
        jobs.ensure_worker()
        runs = self.runs.choices()
        active = [run for run in find_runs(self.context.places.projects, jobs) if state_of(run, jobs).is_active]
        run = run_name(active[0]) if active else (runs[0] if runs else None)
        names = self.context.places.project_names()
        project = run.partition("/")[0] if run else names[0]
        datasets = self.dataset.choices()
        dataset = next((name for name in datasets if name.startswith(f"{project}/")), datasets[0] if datasets else None)
        finished = self.live.with_files()
        return [
            "",
            request.session_hash,
            gr.Tabs(selected="runs") if active else gr.skip(),
            gr.Dropdown(names, value=project),
            gr.Dropdown(runs, value=run),
            gr.Dropdown(datasets, value=dataset),
            gr.Dropdown(finished, value=run if run in finished else (finished[0] if finished else None)),
            *self.runs.table.about(run)[:2],  # no change event comes for a run that was chosen before
            *self.last_asked(self.prepare.form, "prepare", {}),
            *self.last_asked(self.train.form, "train", self.for_next_run(project)),
        ]

    def last_asked(self, form: Form, kind: str, others: dict) -> list:
        """Return the values of a form's widgets from the last job of this kind, with `others` in their place."""
        job = self.context.jobs.newest(kind)
        values = dict.fromkeys(form.widgets, gr.skip())
        if job is not None:
            with contextlib.suppress(ConfigError):  # another version of the page wrote it
                config = read_config(form.config_class, self.context.jobs.folder_of(job.id) / "config.yaml")
                values = dict(zip(form.widgets, form.shown(config), strict=True))
        return list({**values, **others}.values())

    def for_next_run(self, project: str) -> dict:
        """Return the values that differ from the last training's."""
        folders = self.context.places.datasets()
        values = {"output_dir": free_name(self.context, project), "resume_from_checkpoint": "latest", "dry_run": False}
        return {**values, "train_data_dir": newest(folders)} if folders else values

    def name_run(self, project: str | None, name: str | None):
        """Return a free name for the next run, unless the person has typed one."""
        return free_name(self.context, project) if not name or name.startswith("run-") else gr.skip()

    def start(self, start: Callable[..., str], *entered) -> list:
        """Start a job and show its run, or show the problems."""
        *inputs, project, name = entered
        complaint = start(*inputs)
        if complaint:
            return [complaint, gr.skip(), gr.skip(), gr.skip()]
        tell(say("Queued: it starts as soon as nothing else is running."))
        runs = gr.Dropdown(self.runs.choices(), value=f"{project}/{name}")
        return ["", gr.Tabs(selected="runs"), runs, following(name)]

    def use_settings(self, name: str | None) -> list:
        """Fill the training form with the settings of a run, under another name."""
        config = self.runs.settings_of(name)
        project, _, run = (name or "").partition("/")
        config = replace_flat(config, output_dir=following(run), resume_from_checkpoint="latest", dry_run=False)
        return [gr.Tabs(selected="train"), project, *self.train.form.shown(config)]

    def to_captions(self) -> list:
        """Show the dataset that was prepared last."""
        job, names = self.context.jobs.newest("prepare"), self.dataset.choices()
        name = dataset_name(Path(job.target)) if job is not None else None
        return [gr.Tabs(selected="dataset"), gr.Dropdown(names, value=name) if name in names else gr.skip()]

    def to_training(self, name: str | None, prompts: str, masked: bool) -> list:
        """Fill the training form for a dataset.

        Without sample prompts it suggests captions, as nothing would be drawn. It sets `masked_loss` according to
        whether the images have masks: a training with it and without masks would not start.
        """
        folder, folders = self.context.dataset_of(name), self.context.places.datasets()
        if folder is None or str(folder) not in folders:
            return [gr.Tabs(selected="train"), gr.skip(), gr.skip(), gr.skip()]
        images = read_dataset(folder).images
        captions = dict.fromkeys(image.text for image in images if image.text)
        suggested = gr.skip() if prompts else "\n".join(list(captions)[:SUGGESTED_PROMPTS])
        has_masks = any(image.mask for image in images)
        label = say_label(TrainConfig, "masked_loss")
        if has_masks:
            tell(say("Some of these images have masks: “{label}” is on.", label=label))
        elif masked:
            tell(say("None of these images has a mask: “{label}” is off.", label=label))
        return [gr.Tabs(selected="train"), gr.Dropdown(folders, value=str(folder)), suggested, has_masks]

    def to_results(self, name: str | None) -> list:
        names = self.live.with_files()
        return [gr.Tabs(selected="results"), gr.Dropdown(names, value=name) if name in names else gr.skip()]

    def stop_what_runs(self) -> None:
        job = self.context.jobs.running()
        if job is not None:
            self.context.jobs.stop(job)


def following(name: str) -> str:
    """Return the next name: cat-2 after cat-1, cat-2 after cat."""
    stem, dash, number = name.rpartition("-")
    return f"{stem}-{int(number) + 1}" if dash and number.isdecimal() else f"{name}-2"

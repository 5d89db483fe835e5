"""All runs: a table, a comparison, and the upkeep of finished runs. Part of the tab of runs."""

from pathlib import Path
from typing import Any

import gradio as gr

from sdxl_lora.config.train import TrainConfig
from webui.figures.run_table import differing, newest_samples, run_rows
from webui.figures.upkeep import keep_note, note_of, rename_run, set_aside
from webui.locale.i18n import T, say, say_label
from webui.runs.context import Context, run_name
from webui.widgets import templates
from webui.widgets.events import QUIET, show_errors, tell

MOST_COMPARED = 8  # the plots have as many colours


class RunTable:
    """Table and upkeep of runs.

    Args:
        chosen: the run that the tab shows, to which note, name and deletion apply.
    """

    def __init__(self, context: Context, chosen: gr.Dropdown):
        self.context, self.chosen = context, chosen
        with gr.Accordion(T("All runs: table and comparison"), open=False, elem_id="all-runs") as self.all:
            self.table = gr.HTML(elem_id="run-table", padding=False)
            self.compared = gr.Dropdown(
                [], multiselect=True, allow_custom_value=True, max_choices=MOST_COMPARED, label=T("Runs to compare"),
                info=T("Two or more"), elem_id="run-compared",
            )  # fmt: skip
            self.comparison = gr.HTML(elem_id="run-comparison", padding=False)
        with gr.Accordion(T("Note, rename, delete"), open=False, elem_id="run-upkeep"):
            with gr.Row(elem_classes="actions"):
                self.note = gr.Textbox(label=T("Note"), lines=2, elem_id="run-note", scale=3)
                self.keep = gr.Button(T("Save the note"), elem_id="run-keep", scale=0, min_width=180)
            with gr.Row(elem_classes="actions"):
                self.name = gr.Textbox(label=T("New name"), max_lines=1, elem_id="run-name")
                self.rename = gr.Button(T("Rename"), elem_id="run-rename", scale=0, min_width=140)
                self.delete = gr.Button(T("Delete ..."), elem_id="run-delete", scale=0, min_width=140)
                self.sure = gr.Button(
                    T("Delete it now"), variant="stop", visible=False, elem_id="run-sure", scale=0, min_width=180
                )
        self._listen()

    def _listen(self) -> None:
        listed = [self.table, self.compared]
        self.all.expand(self.listed, None, listed, **QUIET)
        self.compared.change(self.compare, [self.compared], [self.comparison], **QUIET)
        about = [self.note, self.name, self.sure]
        self.chosen.change(self.about, [self.chosen], about, **QUIET)  # page.py fills them on opening
        self.keep.click(show_errors(self.noted), [self.chosen, self.note], None, **QUIET)
        self.rename.click(show_errors(self.renamed), [self.chosen, self.name], [self.chosen, *listed, *about], **QUIET)
        self.delete.click(lambda: gr.update(visible=True), None, [self.sure], **QUIET)
        self.sure.click(show_errors(self.deleted), [self.chosen], [self.chosen, *listed, *about], **QUIET)

    def listed(self) -> list:
        """Return the table and the names to compare, as they are now."""
        rows = run_rows(self.context)
        return [templates.runs.listed(rows), gr.update(choices=[row.name for row in rows])]

    def about(self, name: str | None) -> list:
        run = self.context.run_of(name)
        return [note_of(run) if run else "", run.name if run else "", gr.update(visible=False)]

    def noted(self, name: str | None, words: str) -> None:
        keep_note(self.context.need_run(name), words or "")
        tell(say("Saved."))

    def renamed(self, name: str | None, new: str) -> list:
        run = self.context.need_run(name)
        if (new or "").strip() == run.name:
            return [gr.skip()] * 6
        to = rename_run(self.context, run, new or "")
        return [self.chooser(run_name(to)), *self.listed(), *self.about(run_name(to))]

    def deleted(self, name: str | None) -> list:
        where = set_aside(self.context, self.context.need_run(name))
        tell(say("Moved to {path}: delete it there to free the space.", path=where))
        rows = run_rows(self.context)
        left = rows[0].name if rows else None
        return [self.chooser(left), *self.listed(), *self.about(left)]

    def chooser(self, name: str | None) -> Any:
        return gr.Dropdown([row.name for row in run_rows(self.context)], value=name)

    def compare(self, names: list[str] | None) -> str:
        runs = [run for name in names or () if (run := self.context.run_of(name)) is not None and run.is_dir()]
        return comparison_html(runs) if len(runs) > 1 else ""


def comparison_html(runs: list[Path]) -> str:
    """Return settings that differ, curves in one plot, and images side by side, as HTML."""
    settings = {say_label(TrainConfig, name): list(map(words, values)) for name, values in differing(runs).items()}
    return templates.runs.comparison([run_name(run) for run in runs], settings, newest_samples(runs))


def words(value: Any) -> str:
    """Return a setting's value for display."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "—"
    return "—" if value is None else str(value)

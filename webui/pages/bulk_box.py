"""The box below a dataset's search: its tags with counts, and bulk changes of captions."""

import json
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from preprocess.editing import bulk, history
from preprocess.editing.prepared import Dataset
from preprocess.editing.search import View
from preprocess.editing.tags import Edit, tag_counts
from webui.locale.i18n import T, say
from webui.pages.captions import loaded
from webui.widgets import templates
from webui.widgets.events import QUIET, show_errors, tell


class BulkBox:
    """Bulk changes, applied only after a preview; the hidden box `planned` holds the change that was previewed."""

    def __init__(self, undo: gr.Button):
        """Make the box. `undo` is a button outside it, since it undoes more than the changes made here."""
        with gr.Accordion(T("Tags and bulk edits"), open=False, elem_id="bulk"):
            self.tags = gr.HTML(elem_id="bulk-tags", padding=False)
            with gr.Row(equal_height=True):
                self.action = gr.Dropdown(
                    [(T("Add at the end"), "add"), (T("Add at the start, after the trigger word"), "add in front"),
                     (T("Remove the tag"), "remove"), (T("Replace the tag"), "replace"),
                     (T("Replace text"), "replace text")],
                    value="add", label=T("Action"), filterable=False, elem_id="bulk-action",
                )  # fmt: skip
                self.what = gr.Textbox(label=T("Tag or text"), max_lines=1, elem_id="bulk-what")
                self.by = gr.Textbox(label=T("Replace with"), max_lines=1, visible=False, elem_id="bulk-by")
                self.over = gr.Radio(
                    [(T("images found"), "search"), (T("all images"), "all")],
                    value="search", label=T("In the captions of"), elem_id="bulk-over",
                )  # fmt: skip
            self.preview = gr.HTML(elem_id="bulk-preview", padding=False)
            self.planned = gr.Textbox(visible=False)
            with gr.Row(elem_classes="actions"):
                self.look = gr.Button(T("Show what would change"), elem_id="bulk-look")
                self.apply = gr.Button(T("Apply changes"), variant="primary", interactive=False, elem_id="bulk-apply")
        self.asked = [self.action, self.what, self.by, self.over]
        self.undo = undo
        self.outputs = [self.tags, self.undo]

    def listen(self, inputs: list, view_of: Callable, on: Callable) -> None:
        """Connect the buttons.

        Args:
            inputs: components with the dataset in view and the contents of its boxes.
            view_of: saves the boxes and returns folder and view from the inputs.
            on: at events, applies a change to folder and view, and shows the view that it returns.
        """
        state = [self.preview, self.planned, self.apply]

        def look(action: str, what: str, by: str, over: str, *seen) -> list:
            folder, view = view_of(*seen)
            edit = Edit(action, what or "", by or "")
            plan = bulk.planned(folder, edit, view.search if over == "search" else None, view.reading)
            asked = {"edit": [action, what or "", by or ""], "over": over, "view": view.facts(), "digest": plan.digest}
            return [templates.datasets.change(plan), json.dumps(asked), gr.update(interactive=bool(plan.changes))]

        self.look.click(show_errors(look), [*self.asked, *inputs], state, **QUIET)
        on([self.apply.click], self.change, self.planned).success(self.forget, None, state, **QUIET)
        on([self.undo.click], self.take_back).success(self.forget, None, state, **QUIET)
        self.action.change(self.asks_for, [self.action], [self.by, *state], **QUIET)
        gr.on([self.what.input, self.by.input, self.over.change], self.forget, None, state, **QUIET)

    def change(self, folder: Path, view: View, planned: str) -> View:
        asked = loaded(planned)
        then = View.of(asked["view"])
        search = then.search if asked["over"] == "search" else None
        changed = bulk.change_all(folder, Edit(*asked["edit"]), search, then.reading, asked["digest"])
        tell(say("{changed} captions changed.", changed=changed))
        return view

    def take_back(self, folder: Path, view: View) -> View:
        done, left = history.undo(folder)
        words = say("Undone: {count} images are as they were.", count=done)
        if left:
            words += " " + say("{count} were changed since then and stay as they are.", count=left)
        tell(words)
        return view

    def asks_for(self, action: str) -> list:
        return [gr.update(visible=action.startswith("replace")), *self.forget()]

    def forget(self) -> list:
        """Clear the preview: the change was edited."""
        return ["", "", gr.update(interactive=False)]

    def shown(self, dataset: Dataset, view: View) -> list:
        """Return the values of `outputs` for a dataset."""
        counts = tag_counts((image.text for image in dataset.images), view.reading)
        tags = templates.datasets.tags(counts, view.reading, dataset.trigger_word)
        return [tags, gr.update(interactive=bool(history.kept_changes(dataset.folder)))]

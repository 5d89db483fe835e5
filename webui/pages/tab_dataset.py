"""The tab of a prepared dataset: problems first, captions editable in place."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from preprocess.editing import prepared as datasets
from preprocess.editing.bulk import take_out
from preprocess.editing.search import Search, View, reading_of
from sdxl_lora.errors import ConfigError, DataError
from webui.locale.i18n import T, say
from webui.pages.bulk_box import BulkBox
from webui.pages.captions import Captions, key_of_row, loaded
from webui.runs.context import Context, dataset_name
from webui.widgets import templates
from webui.widgets.dataset_html import card_html
from webui.widgets.events import QUIET, show_errors, tell
from webui.widgets.forms import Form
from webui.widgets.scripts import script

HERE = Path(__file__).parent
CARDS = 12  # images in view at once
NO_CARD = [gr.update(visible=False), "", "", ""]
READING = ("caption_separator", "keep_tokens", "keep_tokens_separator")  # of the training form


class DatasetTab:
    """A page of a dataset as cards.

    The browser keeps what is in view in hidden text boxes: `view` says which images, and each card's `key` which row
    its box shows. Every click sends both, so answers may arrive in any order. look.js leaves a box alone while it has
    the focus or holds unsaved text.
    """

    def __init__(self, context: Context):
        self.context, self.captions = context, Captions(context)
        with gr.Row(elem_classes="actions", equal_height=True):
            self.chosen = gr.Dropdown([], label=T("Dataset"), elem_id="dataset-chosen", scale=2)
            self.trigger_word = gr.Textbox(label=T("Trigger word"), max_lines=1, elem_id="dataset-trigger", scale=1)
            self.add_word = gr.Button(T("Add to all captions"), elem_id="dataset-add-trigger", scale=1)
            self.recaption_all = gr.Button(T("Recaption all"), elem_id="dataset-recaption-all", scale=1)
        self.about = gr.HTML(elem_id="dataset-about", padding=False)
        self.view = gr.Textbox(visible=False)
        with gr.Row(elem_classes="actions", equal_height=True):
            self.words = gr.Textbox(
                label=T("Search"), max_lines=1, elem_id="dataset-search", scale=3, min_width=280,
                info=T("Words or [a tag], separated by commas; a - in front excludes it."),
            )  # fmt: skip
            self.which = gr.Dropdown(
                [(T("all images"), "all"), (T("to check"), "to look at"),
                 (T("without a caption"), "without a caption")],
                value="all", label=T("Show"), filterable=False, elem_id="dataset-show", scale=1, min_width=160,
            )  # fmt: skip
            self.page = gr.Number(
                value=1, minimum=1, step=1, precision=0, label=T("Go to page"), elem_id="dataset-page", min_width=110
            )
            undo = gr.Button(T("Undo the last change"), interactive=False, elem_id="dataset-undo", min_width=160)
        self.bulk = BulkBox(undo)
        self._make_cards()
        with gr.Row(visible=False, elem_classes="actions") as self.pages:
            self.back = gr.Button(T("Previous"), size="sm", elem_id="dataset-back")
            self.forth = gr.Button(T("Next"), size="sm", elem_id="dataset-forth")
        with gr.Row(elem_classes="actions"):
            self.go_on = gr.Button(T("Next: train with these images"), variant="primary", elem_id="dataset-go-on")
        gr.HTML(js_on_load=script(HERE / "dataset.js", CARDS=CARDS), padding=False, elem_classes="style")
        cards = [part for card in self.cards for part in card]
        self.outputs = [self.about, self.view, *cards, self.pages, self.back, self.forth, *self.bulk.outputs, self.page]

    def _make_cards(self) -> None:
        self.cards: list[tuple[gr.Column, gr.HTML, gr.Textbox, gr.Textbox]] = []
        self.pressed: list[tuple[gr.Textbox, gr.Button, gr.Button]] = []  # parts of each card that no update replaces
        with gr.Row(elem_classes="cards"):
            for number in range(CARDS):
                with gr.Column(visible=False, elem_classes="picture", min_width=260) as column:
                    html = gr.HTML(padding=False, elem_id=f"card-{number}")
                    text = gr.Textbox(
                        show_label=False, container=False, lines=3, max_lines=8, elem_id=f"caption-{number}",
                        placeholder=T("no caption"),
                    )  # fmt: skip
                    key, saved = gr.Textbox(visible=False), gr.Textbox(visible=False)
                    with gr.Row(elem_classes="of-card"):
                        button = gr.Button(T("Recaption"), size="sm", elem_id=f"recaption-{number}", min_width=120)
                        delete = gr.Button(T("Remove"), size="sm", elem_id=f"delete-{number}", min_width=90)
                self.cards.append((column, html, text, key))
                self.pressed.append((saved, button, delete))

    def listen(self, training: Form) -> None:
        """Connect the tab to the form of the training, whose settings define tags and kept tags."""
        held = [part for _, _, text, key in self.cards for part in (key, text)]
        reading = [training.widgets[name] for name in READING]
        self.inputs = [self.chosen, self.view, self.words, self.which, *reading, *held]
        self.chosen.change(show_errors(self.choose), self.inputs, [*self.outputs, self.trigger_word], **QUIET)
        self.on([self.back.click], lambda folder, view: replace(view, page=view.page - 1))
        self.on([self.forth.click], lambda folder, view: replace(view, page=view.page + 1))
        self.on([self.page.submit], lambda folder, view, page: replace(view, page=int(page or 1) - 1), self.page)
        searched = [self.words.submit, self.words.blur, self.which.change, *(one.change for one in reading)]
        self.on(searched, self.search, self.view, needs_dataset=False, trigger_mode="always_last")
        self.bulk.listen(self.inputs, self.seen, self.on)
        self.on([self.add_word.click], self.add_trigger_word, self.trigger_word)
        self.recaption_all.click(
            show_errors(self.captions.caption_all_anew), [self.chosen], None, js=script(HERE / "ask_all.js"), **QUIET
        )
        ask_one, saved_script = script(HERE / "ask_one.js"), script(HERE / "saved.js")
        for (_, html, text, key), (saved, button, delete) in zip(self.cards, self.pressed, strict=True):
            text.blur(show_errors(self.captions.save), [key, text], [saved], **QUIET).success(
                None, [saved, key, text], [html, key, text], js=saved_script, **QUIET
            )
            button.click(show_errors(self.captions.caption), [key], None, js=ask_one, **QUIET)
            self.on([delete.click], self.take_out, key, text)

    def on(
        self,
        events: list,
        change: Callable[..., View | None],
        *more: gr.components.Component,
        needs_dataset: bool = True,
        **settings,
    ) -> Any:
        """At events, save the boxes, call `change` on folder, view and the values of `more`, and show its result.

        If `change` returns no view, nothing is updated.

        Args:
            needs_dataset: report if no dataset is chosen; else do nothing then, as for a search box that merely loses
                focus.
        """

        def answer(*entered) -> list:
            count = len(self.inputs)
            if not needs_dataset and self.context.dataset_of(entered[0]) is None:
                return [gr.skip()] * len(self.outputs)
            folder, view = self.seen(*entered[:count])
            wanted = change(folder, view, *entered[count:])
            shown = self.shown(datasets.read_dataset(folder), wanted) if wanted is not None else None
            return shown or [gr.skip()] * len(self.outputs)

        return gr.on(events, show_errors(answer), [*self.inputs, *more], self.outputs, **settings, **QUIET)

    def choices(self) -> list[str]:
        return [dataset_name(Path(folder)) for folder in self.context.places.datasets()]

    def seen(self, name: str | None, view: str, words: str, which: str, *rest) -> tuple[Path, View]:
        """Save the boxes that a browser has sent, and return its folder and view."""
        separator, keep, mark, *held = rest
        self.captions.save_all(tuple(held))
        page = View.of(loaded(view)).page
        wanted = View(name, page, Search(words or "", which or "all"), reading_of(separator, keep, mark))
        return self.context.need_dataset(name), wanted

    def choose(self, name: str | None, *entered) -> list:
        if self.context.dataset_of(name) is None:
            self.captions.save_all(entered[-2 * CARDS :])
            return [*self.empty(), gr.skip()]
        folder, view = self.seen(name, *entered)
        dataset = datasets.read_dataset(folder)
        return [*self.shown(dataset, replace(view, page=0)), dataset.trigger_word]

    def refresh(self, name: str | None, view: str | None) -> list | None:
        """Return new values for the outputs if the dataset's files have changed; None if they have not."""
        folder, seen = self.context.dataset_of(name), loaded(view)
        if folder is None:
            return None
        now = stamp(folder)
        if seen.get("name") == name and seen.get("stamp") == now:
            return None
        try:
            shown = self.shown(datasets.read_dataset(folder), replace(View.of(seen), name=name))
            return [*shown[:-1], gr.skip()]  # the person may be typing a page number
        except (ConfigError, DataError) as error:  # the cards stay: the next click on one reports the same
            about = templates.parts.failure(str(error))
            skipped = [gr.skip()] * (len(self.outputs) - 2)
            return [about, json.dumps({**seen, "name": name, "stamp": now}), *skipped]

    def search(self, folder: Path, wanted: View, view: str) -> View | None:
        """Return the first page of the matches; None if that is in view already."""
        before = View.of(loaded(view))
        is_same = (wanted.search, wanted.reading) == (before.search, before.reading)
        return None if is_same else replace(wanted, page=0)

    def take_out(self, folder: Path, view: View, key: str, text: str) -> View | None:
        row = loaded(key)
        if row.get("dataset") != view.name:
            return None
        take_out(folder, (row["file"], row["place"]), text)  # `seen` has saved what was typed
        tell(say("{name} was removed from the dataset. “Undo the last change” brings it back.", name=row["file"]))
        return view

    def add_trigger_word(self, folder: Path, view: View, word: str) -> View:
        tell(say("{changed} captions changed.", changed=datasets.add_trigger_word(folder, word)))
        return view

    def shown(self, dataset: datasets.Dataset, view: View) -> list:
        """Return the values of the outputs for one page of a dataset."""
        found = view.search.images(dataset, view.reading)
        last = max(0, (len(found) - 1) // CARDS)
        page = min(max(0, view.page), last)
        images = found[CARDS * page : CARDS * (page + 1)]
        parts: list = []
        for image in images:
            box, key = gr.update(value=image.text, label=image.source), key_of_row(view.name or "", image)
            parts += [gr.update(visible=True), card_html(dataset.folder, image), box, key]
        rows = hashlib.blake2b(repr([(one.file_name, one.place) for one in images]).encode(), digest_size=8).hexdigest()
        which = f"{view.name} {page} {rows}"
        facts = replace(view, page=page).facts()
        now = json.dumps({**facts, "stamp": stamp(dataset.folder), "which": which}, ensure_ascii=False)
        about = templates.datasets.about(dataset, page, last, which, len(found))
        turns = [gr.update(visible=last > 0), gr.update(interactive=page > 0), gr.update(interactive=page < last)]
        unused = NO_CARD * (CARDS - len(images))
        return [about, now, *parts, *unused, *turns, *self.bulk.shown(dataset, view), page + 1]

    def empty(self) -> list:
        about = templates.parts.empty(say("No dataset yet: prepare one first."))
        hidden = gr.update(visible=False)
        return [about, "", *NO_CARD * CARDS, hidden, gr.skip(), gr.skip(), "", gr.update(interactive=False), 1]


def stamp(folder: Path) -> list[int]:
    """Return the times of the dataset's files, which change whenever the dataset does."""
    paths = ("metadata.jsonl", "preprocess_report.json", ".preprocess/page_undo.jsonl")
    return [(folder / path).stat().st_mtime_ns if (folder / path).exists() else 0 for path in paths]

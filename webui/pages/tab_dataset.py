"""The tab that shows a prepared dataset, problems first, and lets a person mend its captions in place."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gradio as gr

from sdxl_lora.errors import ConfigError, DataError
from webui.datasets.bulk import take_out
from webui.datasets.search import Search, View, reading_of
from webui.locale.i18n import T, say
from webui.pages.bulk_box import BulkBox
from webui.pages.captions import Captions, key_of_row, loaded
from webui.runs import dataset_view as datasets
from webui.runs.context import Context, dataset_name
from webui.widgets import templates
from webui.widgets.dataset_html import card_html
from webui.widgets.events import QUIET, show_errors, tell
from webui.widgets.forms import Form
from webui.widgets.scripts import script

HERE = Path(__file__).parent
CARDS = 12  # pictures in view at once
# Shows that a caption is saved, unless the card has become another row's; what was typed since then stays.
SHOW_SAVED = """(saved, key, text) => {
  const now = JSON.parse(saved || "{}");
  if (now.of !== key) return [undefined, undefined, undefined];
  return [now.html, now.key, text === now.sent ? now.text : undefined];
}"""


READING = ("caption_separator", "keep_tokens", "keep_tokens_separator")  # of the training's form


class DatasetTab:
    """What the person has in view is kept in the browser, in text boxes that nobody sees: `view` says which pictures
    these are, and of each card `key` says which row its box shows. A press brings both along, and answers
    may arrive in any order. look.js leaves a box alone that has the focus or holds what is not saved yet.
    """

    def __init__(self, context: Context):
        self.context, self.captions = context, Captions(context)
        with gr.Row(elem_classes="actions", equal_height=True):
            self.chosen = gr.Dropdown([], label=T("Dataset"), elem_id="dataset-chosen", scale=2)
            self.trigger_word = gr.Textbox(label=T("Trigger word"), max_lines=1, elem_id="dataset-trigger", scale=1)
            self.add_word = gr.Button(T("Add it to all captions"), elem_id="dataset-add-trigger", scale=1)
            self.recaption_all = gr.Button(T("Caption all anew"), elem_id="dataset-recaption-all", scale=1)
        self.about = gr.HTML(elem_id="dataset-about", padding=False)
        self.view = gr.Textbox(visible=False)
        with gr.Row(elem_classes="actions", equal_height=True):
            self.words = gr.Textbox(
                label=T("Search"), max_lines=1, elem_id="dataset-search", scale=3, min_width=280,
                info=T("Words, or [a tag]; with - in front: without it. Commas between several."),
            )  # fmt: skip
            self.which = gr.Dropdown(
                [(T("all images"), "all"), (T("to look at"), "to look at"),
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
            self.go_on = gr.Button(T("Go on: train with these images"), variant="primary", elem_id="dataset-go-on")
        gr.HTML(js_on_load=script(HERE / "dataset.js", CARDS=CARDS), padding=False, elem_classes="style")
        cards = [part for card in self.cards for part in card]
        self.outputs = [self.about, self.view, *cards, self.pages, self.back, self.forth, *self.bulk.outputs]

    def _make_cards(self) -> None:
        self.cards: list[tuple[gr.Column, gr.HTML, gr.Textbox, gr.Textbox]] = []
        self.saved: list[gr.Textbox] = []
        self.recaption: list[gr.Button] = []
        self.delete: list[gr.Button] = []
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
                        button = gr.Button(T("Caption anew"), size="sm", elem_id=f"recaption-{number}", min_width=120)
                        delete = gr.Button(T("Take it out"), size="sm", elem_id=f"delete-{number}", min_width=90)
                self.cards.append((column, html, text, key))
                self.saved.append(saved)
                self.recaption.append(button)
                self.delete.append(delete)

    def listen(self, training: Form) -> None:
        """Args: training: its form, which says what a tag is and which ones are kept in front."""
        held = [part for _, _, text, key in self.cards for part in (key, text)]
        reading = [training.widgets[name] for name in READING]
        seen = [self.chosen, self.view, self.words, self.which, *reading, *held]
        all_shown = [*self.outputs, self.page]
        self.chosen.change(show_errors(self.choose), seen, [*all_shown, self.trigger_word], **QUIET)
        for button, by in ((self.back, -1), (self.forth, 1)):
            button.click(show_errors(self.turner(by)), seen, all_shown, **QUIET)
        self.page.submit(show_errors(self.jump), [self.page, *seen], all_shown, **QUIET)
        searched = [self.words.submit, self.words.blur, self.which.change, *(one.change for one in reading)]
        gr.on(searched, show_errors(self.search), seen, all_shown, trigger_mode="always_last", **QUIET)
        self.bulk.listen(seen, self.outputs, self.seen, self.shown)
        self.add_word.click(show_errors(self.add_trigger_word), [self.trigger_word, *seen], self.outputs, **QUIET)
        self.recaption_all.click(
            show_errors(self.captions.caption_all_anew), [self.chosen], None, js=script(HERE / "ask_all.js"), **QUIET
        )
        ask_one = script(HERE / "ask_one.js")
        parts = zip(self.cards, self.saved, self.recaption, self.delete, strict=True)
        for (_, html, text, key), saved, button, delete in parts:
            text.blur(show_errors(self.captions.save), [key, text], [saved], **QUIET).success(
                None, [saved, key, text], [html, key, text], js=SHOW_SAVED, **QUIET
            )
            button.click(show_errors(self.captions.caption), [key], None, js=ask_one, **QUIET)
            delete.click(show_errors(self.take_out), [key, *seen], all_shown, **QUIET)

    def choices(self) -> list[str]:
        return [dataset_name(Path(folder)) for folder in self.context.places.datasets()]

    def seen(self, name: str | None, view: str, words: str, which: str, *rest) -> tuple[Path, View]:
        """The folder and the view of what a browser has sent, once what its boxes hold is saved."""
        separator, keep, mark, *held = rest
        self.captions.save_all(tuple(held))
        page = View.of(loaded(view)).page
        wanted = View(name, page, Search(words or "", which or "all"), reading_of(separator, keep, mark))
        return self.context.need_dataset(name), wanted

    def choose(self, name: str | None, *entered) -> list:
        folder = self.context.dataset_of(name)
        if folder is None:
            self.captions.save_all(entered[6:])
            return [*self.empty(), 1, gr.skip()]
        folder, view = self.seen(name, *entered)
        dataset = datasets.read_dataset(folder)
        return [*self.shown_at(dataset, replace(view, page=0)), dataset.trigger_word]

    def refresh(self, name: str | None, view: str | None) -> list | None:
        """Return what to show where the files are others than those in view; None where nothing is new."""
        folder, seen = self.context.dataset_of(name), loaded(view)
        if folder is None:
            return None
        now = stamp(folder)
        if seen.get("name") == name and seen.get("stamp") == now:
            return None
        try:
            return self.shown(datasets.read_dataset(folder), replace(View.of(seen), name=name))
        except (ConfigError, DataError) as error:  # the cards stay: the next press on one says the same
            about = templates.parts.failure(str(error))
            skipped = [gr.skip()] * (len(self.outputs) - 2)
            return [about, json.dumps({**seen, "name": name, "stamp": now}), *skipped]

    def turner(self, by: int) -> Callable:
        def turn(*entered) -> list:
            folder, view = self.seen(*entered)
            dataset = datasets.read_dataset(folder)
            return self.shown_at(dataset, replace(view, page=view.page + by))

        return turn

    def jump(self, page: float | None, *entered) -> list:
        folder, view = self.seen(*entered)
        view = replace(view, page=int(page or 1) - 1)
        return self.shown_at(datasets.read_dataset(folder), view)

    def search(self, name: str | None, view: str, *entered) -> list:
        """The first page of what fits; nothing where that is in view already."""
        folder, before = self.context.dataset_of(name), View.of(loaded(view))
        if folder is None:
            return [gr.skip()] * (len(self.outputs) + 1)
        folder, wanted = self.seen(name, view, *entered)
        if (wanted.search, wanted.reading) == (before.search, before.reading):
            return [gr.skip()] * (len(self.outputs) + 1)
        return self.shown_at(datasets.read_dataset(folder), replace(wanted, page=0))

    def take_out(self, key: str, *entered) -> list:
        row = loaded(key)
        folder, view = self.seen(*entered)
        if row.get("dataset") != view.name:
            return [gr.skip()] * (len(self.outputs) + 1)
        held = entered[-2 * CARDS :]
        now = dict(zip(held[::2], held[1::2], strict=True)).get(key, row["text"])  # what was typed is saved by now
        take_out(folder, (row["file"], row["place"]), now)
        tell(say("{name} is out of the dataset. Undo the last change brings it back.", name=row["file"]))
        return self.shown_at(datasets.read_dataset(folder), view)

    def add_trigger_word(self, word: str, *entered) -> list:
        folder, view = self.seen(*entered)
        changed = datasets.add_trigger_word(folder, word)
        tell(say("{changed} captions changed.", changed=changed))
        return self.shown(datasets.read_dataset(folder), view)

    def shown_at(self, dataset: datasets.Dataset, view: View) -> list:
        """Return `shown`, and the number of the page that it is."""
        shown = self.shown(dataset, view)
        return [*shown, loaded(shown[1])["page"] + 1]

    def shown(self, dataset: datasets.Dataset, view: View) -> list:
        """Return for each of the outputs what it shows of one page of a dataset."""
        found = view.search.images(dataset, view.reading)
        last = max(0, (len(found) - 1) // CARDS)
        page = min(max(0, view.page), last)
        images = found[CARDS * page : CARDS * (page + 1)]
        parts: list = []
        for number in range(CARDS):
            if number < len(images):
                html = card_html(dataset.folder, images[number])
                key = key_of_row(view.name or "", images[number])
                box = gr.update(value=images[number].text, label=images[number].source)
                parts += [gr.update(visible=True), html, box, key]
            else:
                parts += [gr.update(visible=False), "", "", ""]
        rows = hashlib.blake2b(repr([(one.file_name, one.place) for one in images]).encode(), digest_size=8).hexdigest()
        which = f"{view.name} {page} {rows}"
        facts = replace(view, page=page).facts()
        now = json.dumps({**facts, "stamp": stamp(dataset.folder), "which": which}, ensure_ascii=False)
        about = templates.datasets.about(dataset, page, last, which, len(found))
        turns = [gr.update(visible=last > 0), gr.update(interactive=page > 0), gr.update(interactive=page < last)]
        return [about, now, *parts, *turns, *self.bulk.shown(dataset, view)]

    def empty(self) -> list:
        about = templates.parts.empty(say("No dataset yet: prepare one first."))
        parts = [part for _ in self.cards for part in (gr.update(visible=False), "", "", "")]
        return [about, "", *parts, gr.update(visible=False), gr.skip(), gr.skip(), "", gr.update(interactive=False)]


def stamp(folder: Path) -> list[int]:
    """Changes whenever the dataset does."""
    paths = ("metadata.jsonl", "preprocess_report.json", ".preprocess/page_undo.jsonl")
    return [(folder / path).stat().st_mtime_ns if (folder / path).exists() else 0 for path in paths]

"""The tab that shows a prepared dataset, problems first, and lets a person mend its captions in place."""

import hashlib
import json
from html import escape
from pathlib import Path

import gradio as gr

from sdxl_lora.errors import ConfigError, DataError
from webui.locale.i18n import LANGUAGES, T, language_of, say
from webui.pages.captions import Captions, key_of_row, loaded
from webui.pages.dataset_html import about_html, card_html
from webui.runs import dataset_view as datasets
from webui.runs.context import Context, dataset_name
from webui.widgets.events import QUIET, show_errors, tell

CARDS = 12  # pictures in view at once
# Shows that a caption is saved, unless the card has become another row's; what was typed since then stays.
SHOW_SAVED = """(saved, key, text) => {
  const now = JSON.parse(saved || "{}");
  if (now.of !== key) return [undefined, undefined, undefined];
  return [now.html, now.key, text === now.sent ? now.text : undefined];
}"""


def asking(words: dict[str, str]) -> str:
    """JavaScript that asks, in the browser's language, before a caption is replaced; of a card without one it does not.
    What it hands on is empty where the answer is no.

    Args:
        words: the question by language.
    """
    return f"""(key) => {{
  const words = {json.dumps(words, ensure_ascii=False)};
  if (key?.startsWith("{{") && JSON.parse(key).text === "") return key;
  return confirm(words[navigator.language.slice(0, 2)] ?? words.en) ? key : "";
}}"""


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
        self.cards: list[tuple[gr.Column, gr.HTML, gr.Textbox, gr.Textbox]] = []
        self.saved: list[gr.Textbox] = []
        self.recaption: list[gr.Button] = []
        with gr.Row(elem_classes="cards"):
            for number in range(CARDS):
                with gr.Column(visible=False, elem_classes="picture", min_width=260) as column:
                    html = gr.HTML(padding=False, elem_id=f"card-{number}")
                    text = gr.Textbox(
                        show_label=False, container=False, lines=3, max_lines=8, elem_id=f"caption-{number}",
                        placeholder=T("no caption"),
                    )  # fmt: skip
                    key, saved = gr.Textbox(visible=False), gr.Textbox(visible=False)
                    button = gr.Button(T("Caption anew"), size="sm", elem_id=f"recaption-{number}")
                self.cards.append((column, html, text, key))
                self.saved.append(saved)
                self.recaption.append(button)
        with gr.Row(visible=False, elem_classes="actions") as self.pages:
            self.back = gr.Button(T("Previous"), size="sm", elem_id="dataset-back")
            self.forth = gr.Button(T("Next"), size="sm", elem_id="dataset-forth")
        with gr.Row(elem_classes="actions"):
            self.go_on = gr.Button(T("Go on: train with these images"), variant="primary", elem_id="dataset-go-on")
        self.outputs = [
            self.about,
            self.view,
            *(part for card in self.cards for part in card),
            self.pages,
            self.back,
            self.forth,
        ]
        self._listen()

    def _listen(self) -> None:
        held = [part for _, _, text, key in self.cards for part in (key, text)]
        seen = [self.chosen, self.view, *held]
        self.chosen.change(show_errors(self.choose), seen, [*self.outputs, self.trigger_word], **QUIET)
        for button, by in ((self.back, -1), (self.forth, 1)):
            button.click(show_errors(self.turner(by)), seen, self.outputs, **QUIET)
        self.add_word.click(show_errors(self.add_trigger_word), [self.trigger_word, *seen], self.outputs, **QUIET)
        ask_all = {
            language: say(language, "Make all captions anew, those written by hand too?") for language in LANGUAGES
        }
        self.recaption_all.click(
            show_errors(self.captions.caption_all_anew), [self.chosen], None, js=asking(ask_all), **QUIET
        )
        ask_one = {
            language: say(language, "Replace this caption? The old one is kept in before_recaption.jsonl.")
            for language in LANGUAGES
        }
        for (_, html, text, key), saved, button in zip(self.cards, self.saved, self.recaption, strict=True):
            text.blur(show_errors(self.captions.save), [key, text], [saved], **QUIET).success(
                None, [saved, key, text], [html, key, text], js=SHOW_SAVED, **QUIET
            )
            button.click(show_errors(self.captions.caption), [key], None, js=asking(ask_one), **QUIET)

    def choices(self) -> list[str]:
        return [dataset_name(Path(folder)) for folder in self.context.places.datasets()]

    def choose(self, request: gr.Request, name: str | None, view: str, *held: str) -> list:
        self.captions.save_all(held)
        folder = self.context.dataset_of(name)
        if folder is None or not (folder / "metadata.jsonl").exists():
            return [*self.empty(language_of(request)), gr.skip()]
        dataset = datasets.read_dataset(folder)
        return [*self.shown(language_of(request), dataset, name, 0), dataset.trigger_word]

    def refresh(self, language: str, name: str | None, view: str | None) -> list | None:
        """Return what to show where the files are others than those in view; None where nothing is new."""
        folder, seen = self.context.dataset_of(name), loaded(view)
        if folder is None or not (folder / "metadata.jsonl").exists():
            return None
        now = stamp(folder)
        if seen.get("name") == name and seen.get("stamp") == now:
            return None
        try:
            return self.shown(language, datasets.read_dataset(folder), name, seen.get("page", 0))
        except (ConfigError, DataError) as error:  # the cards stay: the next press on one says the same
            about = f'<p class="ending failed">{escape(str(error))}</p>'
            skipped = [gr.skip()] * (len(self.outputs) - 2)
            return [about, json.dumps({**seen, "name": name, "stamp": now}), *skipped]

    def turner(self, by: int):
        def turn(request: gr.Request, name: str | None, view: str, *held: str) -> list:
            language = language_of(request)
            self.captions.save_all(held)
            dataset = datasets.read_dataset(self.captions.folder(language, name))
            return self.shown(language, dataset, name, loaded(view).get("page", 0) + by)

        return turn

    def add_trigger_word(self, request: gr.Request, word: str, name: str | None, view: str, *held: str) -> list:
        language = language_of(request)
        self.captions.save_all(held)
        folder = self.captions.folder(language, name)
        changed = datasets.add_trigger_word(folder, word)
        tell(say(language, "{changed} captions changed.", changed=changed))
        return self.shown(language, datasets.read_dataset(folder), name, loaded(view).get("page", 0))

    def shown(self, language: str, dataset: datasets.Dataset, name: str | None, page: int) -> list:
        """Return for each of the outputs what it shows of one page of a dataset."""
        last = max(0, (len(dataset.images) - 1) // CARDS)
        page = min(max(0, page), last)
        images = dataset.images[CARDS * page : CARDS * (page + 1)]
        parts: list = []
        for number in range(CARDS):
            if number < len(images):
                html = card_html(language, dataset.folder, images[number])
                key = key_of_row(name or "", images[number])
                box = gr.update(value=images[number].text, label=images[number].source)
                parts += [gr.update(visible=True), html, box, key]
            else:
                parts += [gr.update(visible=False), "", "", ""]
        rows = hashlib.blake2b(repr([(one.file_name, one.place) for one in images]).encode(), digest_size=8).hexdigest()
        which = f"{name} {page} {rows}"
        shown = json.dumps({"name": name, "stamp": stamp(dataset.folder), "page": page, "which": which})
        about = about_html(language, dataset, page, last, which)
        turns = [gr.update(visible=last > 0), gr.update(interactive=page > 0), gr.update(interactive=page < last)]
        return [about, shown, *parts, *turns]

    def empty(self, language: str) -> list:
        about = f'<p class="empty">{escape(say(language, "No dataset yet: prepare one first."))}</p>'
        parts = [part for _ in self.cards for part in (gr.update(visible=False), "", "", "")]
        return [about, "", *parts, gr.update(visible=False), gr.skip(), gr.skip()]


def stamp(folder: Path) -> list[int]:
    """Changes whenever the dataset does."""
    paths = (folder / "metadata.jsonl", folder / "preprocess_report.json")
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]

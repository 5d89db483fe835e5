"""The tab that shows a prepared dataset, problems first, and lets a person mend its captions in place."""

import hashlib
import json
from html import escape
from pathlib import Path

import gradio as gr

from preprocess.output.html_report import crop_in_percent
from sdxl_lora.errors import ConfigError, DataError
from webui.context import QUIET, Context, dataset_name, show_errors, tell
from webui.html import picture
from webui.i18n import T, language_of, say, say_problem
from webui.runs import dataset_view as datasets
from webui.runs.launch import caption_job, prepare_job

CARDS = 12  # pictures in view at once
# Shows that a caption is saved, unless the card has become another row's; what was typed since then stays.
SHOW_SAVED = """(saved, key, text) => {
  const now = JSON.parse(saved || "{}");
  if (now.of !== key) return [undefined, undefined, undefined];
  return [now.html, now.key, text === now.sent ? now.text : undefined];
}"""


class DatasetTab:
    """What the person has in view is kept in the browser, in text boxes that nobody sees: `view` says which pictures
    these are, and of each card `key` says which row its box shows. A press brings both along, and answers
    may arrive in any order. look.js leaves a box alone that has the focus or holds what is not saved yet.
    """

    def __init__(self, context: Context):
        self.context = context
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
        self.recaption_all.click(show_errors(self.caption_all_anew), [self.chosen], None, **QUIET)
        for (_, html, text, key), saved, button in zip(self.cards, self.saved, self.recaption, strict=True):
            text.blur(show_errors(self.save), [key, text], [saved], **QUIET).success(
                None, [saved, key, text], [html, key, text], js=SHOW_SAVED, **QUIET
            )
            button.click(show_errors(self.caption), [key], None, **QUIET)

    def choices(self) -> list[str]:
        return [dataset_name(Path(folder)) for folder in self.context.places.datasets()]

    def folder(self, language: str, name: str | None) -> Path:
        folder = self.context.dataset_of(name)
        if folder is None or not (folder / "metadata.jsonl").exists():
            raise ConfigError(say(language, "Choose a dataset first."))
        return folder

    def choose(self, request: gr.Request, name: str | None, view: str, *held: str) -> list:
        self.save_all(held)
        folder = self.context.dataset_of(name)
        if folder is None or not (folder / "metadata.jsonl").exists():
            return [*self.empty(language_of(request)), gr.skip()]
        dataset = datasets.read_dataset(folder)
        return [*self.view(language_of(request), dataset, name, 0), dataset.trigger_word]

    def refresh(self, language: str, name: str | None, view: str | None) -> list | None:
        """What to show where the files are others than those in view; None where nothing is new."""
        folder, seen = self.context.dataset_of(name), loaded(view)
        if folder is None or not (folder / "metadata.jsonl").exists():
            return None
        now = stamp(folder)
        if seen.get("name") == name and seen.get("stamp") == now:
            return None
        try:
            return self.view(language, datasets.read_dataset(folder), name, seen.get("page", 0))
        except (ConfigError, DataError) as error:  # the cards stay: the next press on one says the same
            about = f'<p class="ending failed">{escape(str(error))}</p>'
            skipped = [gr.skip()] * (len(self.outputs) - 2)
            return [about, json.dumps({**seen, "name": name, "stamp": now}), *skipped]

    def turner(self, by: int):
        def turn(request: gr.Request, name: str | None, view: str, *held: str) -> list:
            language = language_of(request)
            self.save_all(held)
            dataset = datasets.read_dataset(self.folder(language, name))
            return self.view(language, dataset, name, loaded(view).get("page", 0) + by)

        return turn

    def save(self, request: gr.Request, key: str, text: str) -> str:
        """When a caption loses the focus: what its card then shows, where it is still the same row's."""
        language, is_saved = language_of(request), True
        try:
            if not self.save_row(key, text):
                return gr.skip()
        except datasets.ChangedElsewhere as error:
            is_saved = False
            words = say(language, "Leave its box once more to put yours in its place.")
            gr.Warning(escape(f"{say_problem(language, str(error))} {words}"), title="SDXL LoRA")
        row = loaded(key)
        folder = self.context.dataset_of(row["dataset"])
        picture = next(
            picture
            for picture in datasets.read_dataset(folder).pictures
            if (picture.file_name, picture.place) == (row["file"], row["place"])
        )
        card = card_html(language, folder, picture, saved=is_saved)
        now = {"of": key, "key": key_of_row(row["dataset"], picture), "html": card, "text": picture.text}
        return json.dumps({**now, "sent": text if is_saved else None})

    def save_row(self, key: str, text: str) -> bool:
        """Saves what a box holds into the row that it showed; whether there was anything to save.

        Raises:
            ChangedElsewhere: another text stands there by now.
            ConfigError: the dataset is being prepared.
        """
        row = loaded(key)
        folder = self.context.dataset_of(row.get("dataset"))
        if folder is None or text is None or " ".join(text.split()) == " ".join(row["text"].split()):
            return False
        datasets.save_text(folder, row["file"], row["text"], text, row["place"])
        return True

    def save_all(self, held: tuple[str, ...]) -> None:
        """Before other rows come into view: what could not be saved stays in its box, and that the person reads why."""
        for key, text in zip(held[::2], held[1::2], strict=True):
            self.save_row(key, text)

    def caption(self, request: gr.Request, key: str) -> None:
        language, row = language_of(request), loaded(key)
        folder = self.context.dataset_of(row.get("dataset"))
        if folder is not None:
            self.require_captioner(language, folder)
            self.context.start(caption_job(self.context.jobs, folder, row["file"], row["place"]))
            tell(say(language, "The captioner will look at it; the new caption appears here."))

    def require_captioner(self, language: str, folder: Path) -> None:
        if datasets.read_dataset(folder).config().caption_model == "none":
            raise ConfigError(
                say(language, "This dataset was prepared without auto-caption: prepare it with it first.")
            )

    def add_trigger_word(self, request: gr.Request, word: str, name: str | None, view: str, *held: str) -> list:
        language = language_of(request)
        self.save_all(held)
        folder = self.folder(language, name)
        changed = datasets.add_trigger_word(folder, word)
        tell(say(language, "{changed} captions changed.", changed=changed))
        return self.view(language, datasets.read_dataset(folder), name, loaded(view).get("page", 0))

    def caption_all_anew(self, request: gr.Request, name: str | None) -> None:
        language = language_of(request)
        folder = self.folder(language, name)
        self.require_captioner(language, folder)
        config = datasets.read_dataset(folder).config(recaption=True)
        self.context.start(prepare_job(self.context.jobs, config))
        tell(say(language, "All captions will be made anew; the old ones are kept in before_recaption.jsonl."))

    def view(self, language: str, dataset: datasets.Dataset, name: str | None, page: int) -> list:
        """For each of the outputs what it shows of one page of a dataset."""
        last = max(0, (len(dataset.pictures) - 1) // CARDS)
        page = min(max(0, page), last)
        pictures = dataset.pictures[CARDS * page : CARDS * (page + 1)]
        parts: list = []
        for number in range(CARDS):
            if number < len(pictures):
                html = card_html(language, dataset.folder, pictures[number])
                key = key_of_row(name, pictures[number])
                parts += [gr.Column(visible=True), html, pictures[number].text, key]
            else:
                parts += [gr.Column(visible=False), "", "", ""]
        rows = hashlib.blake2b(
            repr([(one.file_name, one.place) for one in pictures]).encode(), digest_size=8
        ).hexdigest()
        which = f"{name} {page} {rows}"
        shown = json.dumps({"name": name, "stamp": stamp(dataset.folder), "page": page, "which": which})
        about = about_html(language, dataset, page, last, which)
        turns = [gr.Row(visible=last > 0), gr.Button(interactive=page > 0), gr.Button(interactive=page < last)]
        return [about, shown, *parts, *turns]

    def empty(self, language: str) -> list:
        about = f'<p class="empty">{escape(say(language, "No dataset yet: prepare one first."))}</p>'
        parts = [part for _ in self.cards for part in (gr.Column(visible=False), "", "", "")]
        return [about, "", *parts, gr.Row(visible=False), gr.skip(), gr.skip()]


def stamp(folder: Path) -> list[int]:
    """Changes whenever the dataset does."""
    paths = (folder / "metadata.jsonl", folder / "preprocess_report.json")
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]


def key_of_row(name: str, picture: datasets.Picture) -> str:
    """Which row a card shows, and what its box held when it was filled."""
    facts = {"dataset": name, "file": picture.file_name, "place": picture.place, "text": picture.text}
    return json.dumps(facts, ensure_ascii=False)


def loaded(text: str | None) -> dict:
    """What a box that nobody sees says; {} of one that was not filled yet."""
    try:
        facts = json.loads(text or "{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def about_html(language: str, dataset: datasets.Dataset, page: int, last: int, which: str = "") -> str:
    """Counts, and what was left out with its reason."""
    troubled = sum(bool(picture.problems) for picture in dataset.pictures)
    facts = [
        (len(dataset.pictures), say(language, "pictures")),
        (troubled, say(language, "to look at")),
        (len(dataset.left_out), say(language, "left out")),
        (dataset.trigger_word or "—", say(language, "trigger word")),
    ]
    if last:
        facts.append((f"{page + 1} / {last + 1}", say(language, "page")))
    numbers = "".join(f"<div><b>{escape(str(value))}</b>{escape(label)}</div>" for value, label in facts)
    left_out = "".join(f"<li><b>{escape(source)}</b> {escape(reason)}</li>" for source, reason in dataset.left_out)
    details = (
        f"<details><summary>{escape(say(language, 'Left out, and why'))}</summary><ul>{left_out}</ul></details>"
        if left_out
        else ""
    )
    return f'<div class="card" data-which="{escape(which)}"><div class="facts">{numbers}</div>{details}</div>'


def card_html(language: str, folder: Path, shown: datasets.Picture, saved: bool = False) -> str:
    """The whole picture with its crop framed, problems, sizes and tokens; the caption itself is the text box below."""
    facts = shown.facts
    thumbnail = datasets.own_file(folder, f".preprocess/thumbnails/{facts.get('thumbnail', '')}.jpg")
    if facts and thumbnail:
        left, top, width, height = crop_in_percent(facts)
        frame = f'<span style="left:{left:.2f}%;top:{top:.2f}%;width:{width:.2f}%;height:{height:.2f}%"></span>'
        image = f'<div class="frame">{picture(thumbnail, shown.source)}{frame}</div>'
    else:
        image = f'<div class="frame">{picture(datasets.own_file(folder, shown.file_name), shown.source)}</div>'
    problems = "".join(f"<li>{escape(problem)}</li>" for problem in shown.problems)
    sizes = ""
    if facts:
        (height, width), bucket = facts["original_size"], facts["bucket"]
        cut = say(language, "{percent} cut off", percent=f"{facts['cut_off']:.0%}")
        sizes = f"{width}x{height} → {bucket[0]}x{bucket[1]}, {cut} · "
    tokens = say(language, "{tokens} tokens", tokens=f"≥ {shown.tokens}" if shown.at_least else shown.tokens)
    mark = f' <b class="saved">{escape(say(language, "saved"))}</b>' if saved else ""
    return (
        f'{image}<div class="about" data-text="{escape(shown.text)}"><strong>{escape(shown.source)}</strong>{mark}<br>'
        f"{escape(sizes + tokens)}</div>"
        f"{f'<ul class=problems>{problems}</ul>' if problems else ''}"
    )

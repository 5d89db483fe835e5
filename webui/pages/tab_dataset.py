"""The tab that shows a prepared dataset, problems first, and lets a person mend its captions in place."""

from html import escape
from pathlib import Path

import gradio as gr

from preprocess.output.html_report import crop_in_percent
from sdxl_lora.errors import ConfigError
from webui.context import QUIET, Context, dataset_name, tell, telling
from webui.html import picture
from webui.i18n import T, language_of, say
from webui.runs import dataset_view as datasets
from webui.runs.launch import caption_job, prepare_job

CARDS = 12  # pictures in view at once


class DatasetTab:
    """What the person has in view is kept by session: the dataset's name, its stamp, the page, the rows."""

    def __init__(self, context: Context):
        self.context = context
        with gr.Row(elem_classes="actions", equal_height=True):
            self.chosen = gr.Dropdown([], label=T("Dataset"), elem_id="dataset-chosen", scale=2)
            self.trigger_word = gr.Textbox(label=T("Trigger word"), max_lines=1, elem_id="dataset-trigger", scale=1)
            self.add_word = gr.Button(T("Add it to all captions"), elem_id="dataset-add-trigger", scale=1)
            self.recaption_all = gr.Button(T("Caption all anew"), elem_id="dataset-recaption-all", scale=1)
        self.about = gr.HTML(elem_id="dataset-about", padding=False)
        self.shown = gr.State({})
        self.cards: list[tuple[gr.Column, gr.HTML, gr.Textbox, gr.Button]] = []
        with gr.Row(elem_classes="cards"):
            for number in range(CARDS):
                with gr.Column(visible=False, elem_classes="picture", min_width=260) as column:
                    html = gr.HTML(padding=False)
                    text = gr.Textbox(
                        show_label=False, container=False, lines=3, max_lines=8, elem_id=f"caption-{number}",
                        placeholder=T("no caption"),
                    )  # fmt: skip
                    button = gr.Button(T("Caption anew"), size="sm", elem_id=f"recaption-{number}")
                self.cards.append((column, html, text, button))
        with gr.Row(visible=False, elem_classes="actions") as self.pages:
            self.back = gr.Button(T("Previous"), size="sm", elem_id="dataset-back")
            self.forth = gr.Button(T("Next"), size="sm", elem_id="dataset-forth")
        self.outputs = [
            self.about,
            self.shown,
            *(part for card in self.cards for part in card),
            self.pages,
            self.back,
            self.forth,
        ]
        self._listen()

    def _listen(self) -> None:
        self.chosen.change(telling(self.choose), [self.chosen], [*self.outputs, self.trigger_word], **QUIET)
        for button, by in ((self.back, -1), (self.forth, 1)):
            button.click(telling(self.turner(by)), [self.chosen, self.shown], self.outputs, **QUIET)
        self.add_word.click(
            telling(self.add_trigger_word), [self.chosen, self.trigger_word, self.shown], self.outputs, **QUIET
        )
        self.recaption_all.click(telling(self.caption_all_anew), [self.chosen], None, **QUIET)
        for number, (_, html, text, button) in enumerate(self.cards):
            text.blur(telling(self.saver(number)), [self.chosen, self.shown, text], [html, self.shown], **QUIET)
            button.click(telling(self.captioner(number)), [self.chosen, self.shown], None, **QUIET)

    def choices(self) -> list[str]:
        return [dataset_name(Path(folder)) for folder in self.context.places.datasets()]

    def folder(self, language: str, name: str | None) -> Path:
        folder = self.context.dataset_of(name)
        if folder is None or not (folder / "metadata.jsonl").exists():
            raise ConfigError(say(language, "Choose a dataset first."))
        return folder

    def choose(self, request: gr.Request, name: str | None) -> list:
        folder = self.context.dataset_of(name)
        if folder is None or not (folder / "metadata.jsonl").exists():
            return [*self.empty(language_of(request)), gr.skip()]
        dataset = datasets.read_dataset(folder)
        return [*self.view(language_of(request), dataset, name, 0), dataset.trigger_word]

    def refresh(self, language: str, name: str | None, shown: dict) -> list | None:
        """What to show where the files are others than those in view; None where nothing is new."""
        folder = self.context.dataset_of(name)
        if folder is None or not (folder / "metadata.jsonl").exists():
            return None
        if shown.get("name") == name and shown.get("stamp") == stamp(folder):
            return None
        return self.view(language, datasets.read_dataset(folder), name, shown.get("page", 0))

    def turner(self, by: int):
        def turn(request: gr.Request, name: str | None, shown: dict) -> list:
            language = language_of(request)
            dataset = datasets.read_dataset(self.folder(language, name))
            return self.view(language, dataset, name, shown.get("page", 0) + by)

        return turn

    def saver(self, number: int):
        def save(request: gr.Request, name: str | None, shown: dict, text: str) -> tuple:
            """When the caption loses the focus."""
            language = language_of(request)
            rows = shown.get("rows", [])
            if shown.get("name") != name or number >= len(rows) or rows[number][1] == text:
                return gr.skip(), gr.skip()
            folder = self.folder(language, name)
            file_name, seen = rows[number]
            if not datasets.save_text(folder, file_name, seen, text):
                return gr.skip(), gr.skip()
            dataset = datasets.read_dataset(folder)
            picture = next(picture for picture in dataset.pictures if picture.file_name == file_name)
            rows = [*rows[:number], (file_name, picture.text), *rows[number + 1 :]]
            card = card_html(language, folder, picture, saved=True)
            return card, {**shown, "rows": rows, "stamp": stamp(folder)}

        return save

    def captioner(self, number: int):
        def caption(request: gr.Request, name: str | None, shown: dict) -> None:
            language = language_of(request)
            rows = shown.get("rows", [])
            if shown.get("name") == name and number < len(rows):
                folder = self.folder(language, name)
                self.require_captioner(language, folder)
                self.context.start(caption_job(self.context.jobs, folder, rows[number][0]))
                tell(say(language, "The captioner will look at it; the new caption appears here."))

        return caption

    def require_captioner(self, language: str, folder: Path) -> None:
        if datasets.read_dataset(folder).config().caption_model == "none":
            raise ConfigError(
                say(language, "This dataset was prepared without auto-caption: prepare it with it first.")
            )

    def add_trigger_word(self, request: gr.Request, name: str | None, word: str, shown: dict) -> list:
        language = language_of(request)
        folder = self.folder(language, name)
        changed = datasets.add_trigger_word(folder, word)
        tell(say(language, "{changed} captions changed.", changed=changed))
        return self.view(language, datasets.read_dataset(folder), name, shown.get("page", 0))

    def caption_all_anew(self, request: gr.Request, name: str | None) -> None:
        language = language_of(request)
        folder = self.folder(language, name)
        self.require_captioner(language, folder)
        config = datasets.read_dataset(folder).config(recaption=True)
        self.context.start(prepare_job(self.context.jobs, config))
        tell(say(language, "All captions will be made anew; the old ones are kept in before_recaption.jsonl."))

    def view(self, language: str, dataset: datasets.Dataset, name: str | None, page: int) -> list:
        last = max(0, (len(dataset.pictures) - 1) // CARDS)
        page = min(max(0, page), last)
        pictures = dataset.pictures[CARDS * page : CARDS * (page + 1)]
        parts: list = []
        for number in range(CARDS):
            if number < len(pictures):
                html = card_html(language, dataset.folder, pictures[number])
                parts += [gr.Column(visible=True), html, pictures[number].text, gr.skip()]
            else:
                parts += [gr.Column(visible=False), "", "", gr.skip()]
        rows = [(picture.file_name, picture.text) for picture in pictures]
        shown = {"name": name, "stamp": stamp(dataset.folder), "page": page, "rows": rows}
        about = about_html(language, dataset, page, last)
        turns = [gr.Row(visible=last > 0), gr.Button(interactive=page > 0), gr.Button(interactive=page < last)]
        return [about, shown, *parts, *turns]

    def empty(self, language: str) -> list:
        about = f'<p class="empty">{escape(say(language, "No dataset yet: prepare one first."))}</p>'
        parts = [part for _ in self.cards for part in (gr.Column(visible=False), "", "", gr.skip())]
        return [about, {}, *parts, gr.Row(visible=False), gr.skip(), gr.skip()]


def stamp(folder: Path) -> list[int]:
    """Changes whenever the dataset does."""
    paths = (folder / "metadata.jsonl", folder / "preprocess_report.json")
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]


def about_html(language: str, dataset: datasets.Dataset, page: int, last: int) -> str:
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
    return f'<div class="card"><div class="facts">{numbers}</div>{details}</div>'


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
        f'{image}<div class="about"><strong>{escape(shown.source)}</strong>{mark}<br>{escape(sizes + tokens)}</div>'
        f"{f'<ul class=problems>{problems}</ul>' if problems else ''}"
    )

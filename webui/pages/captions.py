"""Captions on the cards of a dataset: saved when their box loses the focus, or made again by the captioner."""

import json
from html import escape
from pathlib import Path

import gradio as gr

from preprocess.editing import prepared as datasets
from sdxl_lora.errors import ConfigError
from webui.locale.i18n import say, say_problem
from webui.runs.context import Context
from webui.runs.launch import caption_job, prepare_job
from webui.widgets.dataset_html import card_html
from webui.widgets.events import tell


class Captions:
    """Saves and remakes captions. A card's key identifies the row in its box; see `key_of_row`."""

    def __init__(self, context: Context):
        self.context = context

    def save(self, key: str, text: str) -> str:
        """Save a caption that loses the focus; return the card's new contents as JSON."""
        is_saved = True
        try:
            if not self.save_row(key, text):
                return gr.skip()
        except datasets.ChangedElsewhere as error:
            is_saved = False
            words = say("To replace it with yours, leave the text box once more.")
            gr.Warning(escape(f"{say_problem(str(error))} {words}"), title="SDXL LoRA")
        row = loaded(key)
        folder = self.context.need_dataset(row["dataset"])
        image = next(
            image
            for image in datasets.read_dataset(folder).images
            if (image.file_name, image.place) == (row["file"], row["place"])
        )
        card = card_html(folder, image, saved=is_saved)
        now = {"of": key, "key": key_of_row(row["dataset"], image), "html": card, "text": image.text}
        return json.dumps({**now, "sent": text if is_saved else None})

    def save_row(self, key: str, text: str) -> bool:
        """Save the contents of a box to its row; return whether they had changed.

        Raises:
            ChangedElsewhere: the row has another text by now.
            ConfigError: the dataset is being prepared, or is gone.
        """
        row = loaded(key)
        if not row or text is None or " ".join(text.split()) == " ".join(row["text"].split()):
            return False
        if (folder := self.context.dataset_of(row["dataset"])) is None:
            raise ConfigError(f"{row['file']} is no longer in the dataset: load it again")
        datasets.save_text(folder, row["file"], row["text"], text, row["place"])
        return True

    def save_all(self, held: tuple[str, ...]) -> None:
        """Save all boxes before other rows come into view; a failure is raised, and the boxes keep their texts."""
        for key, text in zip(held[::2], held[1::2], strict=True):
            self.save_row(key, text)

    def caption(self, key: str) -> None:
        row = loaded(key)
        folder = self.context.dataset_of(row.get("dataset"))
        if folder is not None:
            self.require_captioner(folder)
            self.context.jobs.add(caption_job(folder, row["file"], row["place"]))
            tell(say("The captioner will look at this image; its new caption will appear here."))

    def require_captioner(self, folder: Path) -> None:
        if not datasets.read_dataset(folder).config().captioner.models:
            words = say("This dataset was prepared without auto-caption: prepare it again with auto-caption first.")
            raise ConfigError(words)

    def caption_all_anew(self, name: str | None) -> None:
        if name == "":  # the person declined
            return
        folder = self.context.need_dataset(name)
        self.require_captioner(folder)
        config = datasets.read_dataset(folder).config(recaption=True)
        self.context.jobs.add(prepare_job(self.context.jobs, config))
        tell(say("All captions will be redone; the old ones are kept in .preprocess/before_recaption.jsonl."))


def key_of_row(name: str, image: datasets.DatasetImage) -> str:
    """Return the key of a card: its row and the text that its box was filled with."""
    facts = {"dataset": name, "file": image.file_name, "place": image.place, "text": image.text}
    return json.dumps(facts, ensure_ascii=False)


def loaded(text: str | None) -> dict:
    """Return the facts in a hidden box; {} if it is not filled yet."""
    try:
        facts = json.loads(text or "{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}

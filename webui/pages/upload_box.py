"""Images from a person's machine into a folder of the project, and what is in the folder that is to be prepared."""

import base64
import json
from functools import cache
from html import escape
from pathlib import Path

import gradio as gr

from sdxl_lora.config.paths import pasted_path
from sdxl_lora.errors import ConfigError, DiskError
from sdxl_lora.folders.finder import find_images
from sdxl_lora.folders.found import Found
from webui.datasets import uploads
from webui.datasets.folders import MOST_FILES, has_few_files, image_folders, is_below_roots
from webui.locale.i18n import LANGUAGES, T, language_of, say, say_problem
from webui.pages.captions import loaded
from webui.runs.context import Context
from webui.widgets.events import QUIET, show_errors
from webui.widgets.images import image_html

MOST_SHOWN, MOST_NAMED = 24, 100


def words(language: str) -> dict[str, str]:
    """What upload.js says, and fills in itself."""
    facts = {name: f"{{{name}}}" for name in ("done", "count", "sent", "size", "there")}
    return {
        "drop": say(language, "Drop images or a folder here, with their captions (.txt) if there are any."),
        "files": say(language, "Choose images"),
        "folder": say(language, "Choose a folder"),
        "stop": say(language, "Stop the upload"),
        "on": say(language, "Continue the upload"),
        "progress": say(language, "Upload progress"),
        "sent": say(language, "{done} of {count} files, {sent} of {size} MB", **facts),
        "here": say(language, "{done} files are here.", **facts),
        "hereBefore": say(language, "{done} files are here, {there} of them were here before.", **facts),
        "stopped": say(language, "Stopped."),
        "again": say(language, "The page's server does not answer: it is asked again."),
        "lost": say(language, "The page's server does not answer."),
        "refused": say(language, "Files not accepted: {count}", **facts),
        "unreadable": say(language, "it cannot be read"),
    }


@cache
def upload_script() -> str:
    script = (Path(__file__).parent / "upload.js").read_text(encoding="utf-8")
    by_language = {language: words(language) for language in LANGUAGES}
    script = script.replace("WORDS", json.dumps(by_language, ensure_ascii=False))
    return script.replace("PIECE_BYTES", str(uploads.PIECE_BYTES))


class UploadBox:
    """
    Args:
        project: in whose folder they go.
    """

    def __init__(self, context: Context, project: gr.Dropdown):
        self.context, self.project = context, project
        with gr.Row():
            self.drop = gr.HTML(
                '<div class="drop"></div>',
                js_on_load=upload_script(),
                padding=False,
                elem_id="upload",
                scale=3,
                min_width=320,
            )
            self.folder = gr.Textbox(
                value="images", label=T("Folder in the project"), max_lines=1, elem_id="upload-folder",
                scale=1, min_width=220, info=T("Your images are kept here."),
            )  # fmt: skip
        self.shown = gr.HTML(elem_id="upload-shown", padding=False)
        facts, piece, answer = (gr.Textbox(visible=False) for _ in range(3))
        facts.change(
            self.take, [facts, piece], [answer], api_name="sdxl_lora_upload", queue=False,
            **{**QUIET, "api_visibility": "undocumented"},
        )  # fmt: skip

    def listen(self, input_dir: gr.Dropdown) -> None:
        """Args: input_dir: the form's field, which then says what was brought in; what is in it is shown below."""
        self.drop.brought(show_errors(self.brought), [self.project, self.folder], [input_dir, self.shown], **QUIET)
        input_dir.change(show_errors(self.show), [input_dir], [self.shown], **QUIET)
        input_dir.focus(self.choices, None, [input_dir], **QUIET)

    def take(self, request: gr.Request, facts: str, piece: str) -> str:
        """One request of upload.js: how files stand before they are sent, or a piece of one. What cannot be is told as
        {"error": words}."""
        language, asked = language_of(request), loaded(facts)
        try:
            folder = uploads.upload_folder(self.context.places, str(asked.get("project")), str(asked.get("folder")))
            if "begin" in asked:
                files = [incoming(one) for one in asked["begin"]]
                return json.dumps({"files": [told(language, one) for one in uploads.begin(folder, files)]})
            if "sha256" in asked:
                return json.dumps(
                    told(language, uploads.compared(folder, incoming(asked["file"]), str(asked["sha256"])))
                )
            data = base64.b64decode(piece or "", validate=True)
            return json.dumps(told(language, uploads.put(folder, incoming(asked["file"]), int(asked["at"]), data)))
        except (ConfigError, DiskError) as error:
            return json.dumps({"error": say_problem(language, str(error))})
        except (KeyError, TypeError, ValueError) as error:
            return json.dumps({"error": f"{type(error).__name__}: {error}"})

    def brought(self, request: gr.Request, project: str, name: str) -> list:
        folder = uploads.upload_folder(self.context.places, project, name)
        choices = image_folders(self.context.places)
        return [gr.Dropdown(choices, value=str(folder)), self.show(request, str(folder))]

    def choices(self) -> dict:
        return gr.update(choices=image_folders(self.context.places))

    def show(self, request: gr.Request, typed: str | None) -> str:
        """The images of the folder that is typed or chosen; "" where it is none."""
        folder = Path(pasted_path(typed or ""))
        if not typed or not folder.is_dir():
            return ""
        language = language_of(request)
        if not has_few_files(folder):
            words = say(
                language, "More than {count} files: they are looked at when you prepare them.", count=MOST_FILES
            )
            return f'<p class="hint">{escape(words)}</p>'
        return images_html(language, find_images(folder), is_below_roots(self.context.places, folder))


def incoming(facts: list) -> uploads.Incoming:
    path, size, changed = facts
    return uploads.Incoming(str(path), int(size), int(changed))


def told(language: str, answer: uploads.Answer) -> dict:
    return {"state": answer.state, "at": answer.at, "why": say_problem(language, answer.why), "name": answer.name}


def images_html(language: str, found: Found, with_images: bool) -> str:
    """Counts, what is not used and why, and the first images."""
    captions = sum(source.caption is not None for source in found.sources)
    unused = {**found.left_out, **found.other_files}
    facts = [
        (len(found.sources), say(language, "images")),
        (captions, say(language, "with a caption")),
        (len(unused), say(language, "files not used")),
    ]
    numbers = "".join(f"<div><b>{count}</b>{escape(label)}</div>" for count, label in facts)
    shown = found.sources[:MOST_SHOWN] if with_images else []
    images = "".join(
        f"<figure>{image_html(source.path, source.name)}<figcaption>{escape(source.name)}</figcaption></figure>"
        for source in shown
    )
    more = len(found.sources) - len(shown)
    words = say(language, "and {count} more", count=more) if shown and more else ""
    return (
        f'<div class="card"><div class="facts">{numbers}</div>{unused_html(language, unused)}'
        f'<div class="thumbnails cards">{images}</div><p class="hint">{escape(words)}</p></div>'
    )


def unused_html(language: str, unused: dict[str, str]) -> str:
    if not unused:
        return ""
    named = list(unused.items())[:MOST_NAMED]
    lines = "".join(f"<li><b>{escape(name)}</b> {escape(say_problem(language, why))}</li>" for name, why in named)
    return f"<details><summary>{escape(say(language, 'Not used, and why'))}</summary><ul>{lines}</ul></details>"

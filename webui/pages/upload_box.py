"""Upload of images into a folder of the project, and the contents of the folder to prepare."""

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import gradio as gr

from sdxl_lora.config.paths import pasted_path
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.folders.finder import find_images
from webui.datasets import uploads
from webui.datasets.folders import (
    MOST_FILES,
    has_few_files,
    image_folders,
    is_below_roots,
    is_same_folder,
    last_left_out,
)
from webui.locale.i18n import T, say, say_problem
from webui.pages.asked import SETTINGS
from webui.pages.captions import loaded
from webui.runs.context import Context
from webui.settings.fields import fields_of, typed_value
from webui.widgets import templates
from webui.widgets.dataset_html import images_html
from webui.widgets.events import QUIET, as_json, show_errors
from webui.widgets.forms import Form
from webui.widgets.scripts import script

HERE = Path(__file__).parent
SHOWN_AT_ONCE = 24
# The plan of a folder depends on these.
PLANNED_BY = (
    "input_dir", "leave_out", "resolution", "buckets", "bucket_step", "max_aspect", "no_upscale", "enlarge_small",
    "min_bucket_side", "crop",
)  # fmt: skip


class UploadBox:
    """Upload of images, and a preview of their folder.

    Args:
        project: whose folder receives them.
    """

    def __init__(self, context: Context, project: gr.Dropdown):
        self.context, self.project = context, project
        with gr.Row():
            self.drop = gr.HTML(
                '<div class="drop"></div>',
                js_on_load=script(HERE / "upload.js", PIECE_BYTES=uploads.PIECE_BYTES),
                padding=False,
                elem_id="upload",
                scale=3,
                min_width=320,
            )
            self.folder = gr.Textbox(
                value="images", label=T("Folder in the project"), max_lines=1, elem_id="upload-folder",
                scale=1, min_width=220, info=T("Where your images are kept."),
            )  # fmt: skip
        self.shown = gr.HTML(js_on_load=script(HERE / "folder.js"), elem_id="upload-shown", padding=False)
        self.count = gr.Number(value=SHOWN_AT_ONCE, visible=False)
        self.before = gr.Textbox(visible=False)  # folder and dataset that the form's list belongs to, see listed.js
        facts, piece, answer = (gr.Textbox(visible=False) for _ in range(3))
        facts.change(as_json(self.take), [facts, piece], [answer], api_name="sdxl_lora_upload", **SETTINGS)

    def listen(self, form: Form) -> None:
        """Connect the box to the form: an upload sets its folder, whose contents and plan are shown below."""
        self.form = form
        input_dir, output_dir, leave_out = (form.widgets[name] for name in ("input_dir", "output_dir", "leave_out"))
        seen = [self.count, *form.inputs]
        self.drop.brought(
            show_errors(self.brought), [self.project, self.folder, *seen], [input_dir, leave_out, self.shown], **QUIET
        )
        changed = [*(form.widgets[name].change for name in PLANNED_BY), self.count.change]
        gr.on(changed, show_errors(self.show), seen, [self.shown], trigger_mode="always_last", **QUIET)
        self.shown.toggled(None, [leave_out], [leave_out], js=script(HERE / "toggled.js"), **QUIET)
        self.shown.more(None, [self.count], [self.count], js=f"(count) => [count + {SHOWN_AT_ONCE}]", **QUIET)
        input_dir.focus(self.choices, None, [input_dir], **QUIET)
        at = {"FOLDER_AT": form.inputs.index(input_dir), "DATASET_AT": form.inputs.index(output_dir)}
        # Gradio also fires `input` when the folder's field merely loses the focus.
        gr.on(
            [input_dir.input, output_dir.blur], self.listed, [self.before, *form.inputs], [leave_out],
            js=script(HERE / "listed.js", **at), trigger_mode="always_last", **QUIET,
        )  # fmt: skip

    def take(self, facts: str, piece: str) -> dict:
        """Answer one request of upload.js: the states of files before they are sent, or one piece of a file."""
        asked = loaded(facts)
        folder = uploads.upload_folder(self.context.places, str(asked.get("project")), str(asked.get("folder")))
        if "begin" in asked:
            return {"files": [told(one) for one in uploads.begin(folder, [incoming(one) for one in asked["begin"]])]}
        if "sha256" in asked:
            return told(uploads.compared(folder, incoming(asked["file"]), str(asked["sha256"])))
        data = base64.b64decode(piece or "", validate=True)
        return told(uploads.put(folder, incoming(asked["file"]), int(asked["at"]), data))

    def brought(self, project: str, name: str, count: int, *entered) -> list:
        folder = uploads.upload_folder(self.context.places, project, name)
        choices = image_folders(self.context.places)
        values = self.form.values(*entered)
        before = json.dumps({"folder": values["input_dir"], "dataset": values["output_dir"]})
        leave_out = self.listed(before, project, *{**values, "input_dir": str(folder)}.values())
        values |= {"input_dir": str(folder)} | ({"leave_out": leave_out} if isinstance(leave_out, str) else {})
        shown = self.show(count, project, *values.values())
        return [gr.Dropdown(choices, value=str(folder)), leave_out, shown]

    def listed(self, before: str | None, project: str, *entered):
        """Return the names of images to leave out after the form's folder or dataset has changed.

        They are those that the dataset was last prepared without. If the folder is the same and the dataset new, they
        stay.
        """
        values, was = self.form.values(project, *entered), loaded(before)
        folder, dataset = values["input_dir"] or "", values["output_dir"] or ""
        is_same = is_same_folder(was.get("folder"), folder)
        if is_same and was.get("dataset") == dataset:
            return gr.skip()
        names = last_left_out(self.context.places, project, dataset, folder)
        return gr.skip() if names is None and is_same else names or ""

    def choices(self) -> dict:
        return gr.update(choices=image_folders(self.context.places))

    def show(self, count: int, project: str, *entered) -> str:
        """Return the images of the form's folder, with their plan."""
        values = self.form.values(project, *entered)
        config: Any = None
        with contextlib.suppress(ConfigError):  # the button reports the problems; here there is no plan
            config = self.form.config(project, *entered)
        out = typed_value(fields_of(PreprocessConfig)["leave_out"], values["leave_out"])
        return self.described(values["input_dir"], count, config, set(out))

    def described(self, typed: str | None, *planned) -> str:
        """Return the contents of a folder as HTML; "" if none is chosen. Args: planned: see `images_html`."""
        folder = Path(pasted_path(typed or ""))
        if not typed or not folder.is_dir():
            return ""
        if not has_few_files(folder):
            words = say("More than {count} files: they are checked when you prepare them.", count=MOST_FILES)
            return templates.parts.hint(words)
        return images_html(find_images(folder), is_below_roots(self.context.places, folder), *planned)


def incoming(facts: list) -> uploads.Incoming:
    path, size, changed = facts
    return uploads.Incoming(str(path), int(size), int(changed))


def told(answer: uploads.Answer) -> dict:
    return {"state": answer.state, "at": answer.at, "why": say_problem(answer.why), "name": answer.name}

"""A form's settings as a YAML file to copy, keep, share and load, and as the equivalent command line."""

from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.errors import ConfigError
from webui.locale.i18n import T, say, say_problem
from webui.runs.launch import command_line, read_config
from webui.widgets.events import QUIET, show_errors, tell
from webui.widgets.forms import Form

BASE = "pretrained_model_name_or_path"


class SettingsBox:
    """Settings as a file and as a command.

    Args:
        problems: the last complaint of the form's button, cleared once fixed.
        processes: the number of processes, if the form has one.
    """

    def __init__(self, form: Form, prefix: str, problems: gr.HTML, processes: gr.components.Component | None = None):
        self.form = form
        with gr.Accordion(T("These settings as a file and as a command"), open=False):
            self.command = gr.Textbox(
                label=T("As a command"), lines=3, max_lines=12, interactive=False, buttons=["copy"],
                elem_id=f"{prefix}-command", elem_classes="code",
            )  # fmt: skip
            self.yaml = gr.Textbox(
                label=T("As a YAML file for --config"), lines=8, max_lines=18, interactive=False,
                buttons=["copy"], elem_id=f"{prefix}-yaml", elem_classes="code",
            )  # fmt: skip
            self.upload = gr.UploadButton(
                T("Load a YAML file"), file_types=[".yaml", ".yml"], size="sm", elem_id=f"{prefix}-load"
            )
        processes = processes or gr.Number(1, visible=False)
        widgets: list[Any] = [*form.inputs, processes]
        gr.on(
            [widget.change for widget in widgets],
            self.texts,
            [processes, problems, *form.inputs],
            [self.command, self.yaml, problems],
            trigger_mode="always_last",
            js=f'(...entered) => (window.sdxlLoraFinders?.["{prefix}"]?.ask(), entered)',
            **QUIET,
        )
        self.upload.upload(show_errors(self.load), [self.upload], [*form.widgets.values()], **QUIET)

    def texts(self, processes: float, complaint: str, *entered) -> tuple:
        """Return command line and YAML, or the problems in their place; and the complaint, brought up to date."""
        complained = self.form.complaint(*entered) if complaint else gr.skip()
        try:
            config = self.form.config(*entered)
        except ConfigError as error:
            lines = [say("Fix this first:"), *(say_problem(p) for p in error.problems)]
            words = "".join(f"# {line}\n" for line in lines)
            return words, words, complained
        return command_line(config, int(processes or 1)), to_yaml(config), complained

    def load(self, file: str) -> list:
        """Return the settings in the file; a base that it leaves out stays, as the page may have its own default."""
        config = read_config(self.form.config_class, Path(file))
        values = dict(zip(self.form.widgets, self.form.shown(config), strict=True))
        if BASE in values and BASE not in yaml.safe_load(Path(file).read_text(encoding="utf-8")):
            values[BASE] = gr.skip()
        tell(say("Loaded."))
        return list(values.values())

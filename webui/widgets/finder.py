"""Search of a form's settings, with those that changed or have no effect. finder.js does it, in the browser alone."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdxl_lora.config.fields import flat_fields
from webui.settings.fields import entered_value, fields_of, groups_of
from webui.widgets.events import QUIET
from webui.widgets.scripts import script


class Finder:
    """Search box and checkbox above a form.

    Args:
        widgets: by the setting's name, in the order of the form's inputs.
        prefix: of the widgets' ids.
    """

    def __init__(self, config_class: type, widgets: Mapping[str, gr.components.Component], prefix: str):
        data = json.dumps({"prefix": prefix, "settings": facts(config_class, widgets)}, ensure_ascii=False)
        bar = gr.HTML(
            f'<div class="finder" data-form="{escape(data)}"><input type="search">'
            '<label><input type="checkbox"></label><span role="status"></span><style></style></div>',
            js_on_load=script(Path(__file__).with_name("finder.js")),
            padding=False,
        )
        take = f'(...values) => window.sdxlLoraFinders["{prefix}"].take(values)'
        bar.values(None, [*widgets.values()], None, js=take, **QUIET)


def begin_script(prefix: str, names: list[str]) -> str:
    """Return JavaScript that takes these fields' present values, the event's inputs, as their initial ones."""
    return f'(...values) => window.sdxlLoraFinders["{prefix}"].begin({json.dumps(names)}, values)'


def facts(config_class: type, widgets: Mapping[str, gr.components.Component]) -> dict[str, dict[str, Any]]:
    """Return the script's facts about each setting: initial value, section, and the condition that it applies under."""
    sections = {name: place for place, names in enumerate(groups_of(config_class).values()) for name in names}
    settings, fields = flat_fields(config_class), fields_of(config_class)
    found = {}
    for name, widget in widgets.items():
        rule = settings[name].applies_when
        others = [
            [other, [entered_value(fields[other], value) for value in wanted]]
            for other, wanted in (rule.others if rule else ())
        ]
        found[name] = {"default": getattr(widget, "value", None), "section": sections[name], "when": others}
    return found

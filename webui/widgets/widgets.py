"""A widget for each field of a config: the basic ones in view, the others in sections that open."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from sdxl_lora.config.checks import OPTIMIZERS
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from webui.locale.i18n import T, help_of, label_of
from webui.settings.fields import Field, entered_value, fields_of, groups_of
from webui.widgets.finder import Finder

Choices = Sequence[str | tuple]

SUGGESTIONS: dict[type, dict[str, Choices]] = {
    PreprocessConfig: {
        "caption_task": (
            (T("a sentence"), "<CAPTION>"),
            (T("a few sentences"), "<DETAILED_CAPTION>"),
            (T("a paragraph"), "<MORE_DETAILED_CAPTION>"),
        ),
        "caption_model": (
            "florence-community/Florence-2-base",
            "florence-community/Florence-2-large",
            "florence-community/Florence-2-base-ft",
            "florence-community/Florence-2-large-ft",
            "SmilingWolf/wd-swinv2-tagger-v3",
            "SmilingWolf/wd-eva02-large-tagger-v3",
            "none",
        ),
    },
    TrainConfig: {
        "optimizer": OPTIMIZERS,
        "target_modules": ("auto", "attention", "attention+ff", "all-linear", "all-linear+conv"),
        "learning_rate": (
            (T("5e-5: gentle, for large or varied datasets"), "5e-05"),
            (T("1e-4: a good start"), "0.0001"),
            (T("2e-4: quick, for small datasets"), "0.0002"),
            (T("5e-4: strong, may spoil the images"), "0.0005"),
            (T("1: for prodigy, which finds its own rate"), "1"),
        ),
        "resume_from_checkpoint": ("latest", "None"),
        "train_batch_size": ("1", "2", "4", "8", "auto"),
    },
}


def form(
    config_class: type, suggestions: Mapping[str, Choices], values: Mapping[str, object], prefix: str
) -> dict[str, gr.components.Component]:
    """Return widgets by field, in the fields' order, with the search above them.

    Args:
        suggestions: more choices for fields, by name; other values may be typed.
        values: shown in place of the default.
    """
    fields = fields_of(config_class)
    suggestions = {**SUGGESTIONS[config_class], **suggestions}
    made: dict[str, gr.components.Component] = {}

    def make(name: str) -> None:
        value = values[name] if name in values else entered_value(fields[name], fields[name].default)
        made[name] = widget(config_class, fields[name], suggestions.get(name), value, f"{prefix}-{name}")

    above = gr.Column()
    (_, basic), *others = groups_of(config_class).items()
    with gr.Group(elem_classes="fields", elem_id=f"{prefix}-section-0"):
        for name in basic:
            make(name)
    for number, (section, names) in enumerate(others, start=1):
        with (
            gr.Accordion(T(section), open=False, elem_id=f"{prefix}-section-{number}"),
            gr.Group(elem_classes="fields"),
        ):
            for name in names:
                make(name)
    in_order = {name: made[name] for name in fields}
    with above:
        Finder(config_class, in_order, prefix)
    return in_order


def widget(
    config_class: type, field: Field, choices: Choices | None, value: Any, elem_id: str
) -> gr.components.Component:
    about: dict[str, Any] = {"label": T(label_of(config_class, field.name)), "elem_id": elem_id}
    about["info"] = T(help_of(config_class, field.name))
    if field.kind == "bool":
        return gr.Checkbox(value=value, **about)
    if field.kind == "choice":
        options = [(choice, choice) for choice in field.choices]
        if field.optional:
            options.insert(0, ("—", ""))
        return gr.Dropdown(options, value=value, filterable=False, **about)
    if choices is not None and field.kind == "lines":
        return gr.Dropdown(
            list(choices), value=str(value).splitlines(), multiselect=True, allow_custom_value=True, **about
        )
    if choices is not None:
        return gr.Dropdown(list(choices), value=value, allow_custom_value=True, **about)
    if field.kind == "int" and not field.optional and not field.choices:  # Gradio shows a missing number as 0
        return gr.Number(value=value, step=1, **about)
    if field.kind == "lines":
        return gr.Textbox(value=value, lines=2, placeholder=T("one per line"), **about)
    return gr.Textbox(value=value, max_lines=1, **about)

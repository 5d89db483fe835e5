"""Write docs/settings.md from the config classes: every setting with its values, default and help.

    python -m docs.generate_settings

A test compares the file with `settings_page()`, so run this after a setting has changed. Imports no torch.
"""

import dataclasses
import re
import types
import typing
from pathlib import Path

from sdxl_lora.config.fields import flat_fields
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig

PAGE = Path(__file__).with_name("settings.md")
COMMANDS = {
    "Training settings": (TrainConfig, "python train_sdxl_lora.py"),
    "Preparation settings": (PreprocessConfig, "python -m preprocess"),
}
INTRODUCTION = """\
# Settings

<!-- Written by `python -m docs.generate_settings`. Change the help texts in the config classes, not this page. -->

Every setting is a flag of the command line and a key of the YAML file that `--config FILE.yaml` reads. Both have the
same name: `--learning_rate 1e-4` is `learning_rate: 1e-4`. A flag wins over the file.

A switch that is off by default is turned on by its name alone, or by `true` in YAML. A switch that is on by default is
turned off with `no_` in front of its name: `--no_cache_latents`, or `cache_latents: false` in YAML. Lists take several
words: `--block_ranks down=4 up=32`.

The same texts are printed by `--help`. The [training page](training.md) explains which settings to change first.
"""
WORDS = {bool: "on, off", int: "whole number", float: "number", str: "text"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the page, as plain text."""

    name: str
    values: str
    default: str
    help: str


def grouped_settings(config_class: type) -> list[tuple[str, list[Setting]]]:
    """Return the settings of a command by section, as (title, settings), in the order of their declaration."""
    groups: dict[str, list[Setting]] = {}
    for name, field in flat_fields(config_class).items():
        when = f" Only with {field.applies_when}." if field.applies_when else ""
        setting = Setting(name, values_of(field.type), default_of(field.default), field.help + when)
        groups.setdefault(field.title, []).append(setting)
    return list(groups.items())


def values_of(hint: typing.Any) -> str:
    """Return the values of a type in words: `int | None` is "whole number", a Literal its choices."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(values_of(kind) for kind in arguments if kind is not type(None))
    if typing.get_origin(hint) is tuple:
        item = WORDS[arguments[0]]
        return f"{item}, one or more" if arguments[-1] is Ellipsis else f"{item}, {len(arguments)} of them"
    return WORDS[hint]


def default_of(value: typing.Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        return " ".join(f"`{item}`" for item in value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def settings_page() -> str:
    """Return the whole page as Markdown."""
    parts = [INTRODUCTION]
    for heading, (config_class, command) in COMMANDS.items():
        parts.append(f"\n## {heading}\n\nFor `{command}`.\n")
        for title, settings in grouped_settings(config_class):
            parts.append(f"\n### {title[0].upper()}{title[1:]}\n\n| setting | values | default | what it does |\n")
            parts.append("|---|---|---|---|\n")
            parts += [
                f"| `--{s.name}` | {in_table(s.values)} | {in_table(s.default)} | {in_table(as_text(s.help))} |\n"
                for s in settings
            ]
    return "".join(parts)


def as_text(text: str) -> str:
    """Return text that Markdown shows literally; text between backticks stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\<>*\[\]])", r"\\\1", part) for part in parts)


def in_table(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8", newline="\n")
    print(f"wrote {PAGE}")

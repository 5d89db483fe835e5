"""A config's fields for a form (name, kind, default, help, section, choices), and the config from what is typed.

Knows no widgets. The config itself checks the values, as on the command line.
"""

import dataclasses
import re
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from sdxl_lora.config.fields import flat_fields, from_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError

FILE_NAMES = ("leave_out",)  # file names may begin with a blank or contain other line ends
BASIC = {  # fields that are always in view
    PreprocessConfig: (
        "input_dir", "output_dir", "trigger_word", "fallback_caption", "caption_task", "resolution",
    ),
    TrainConfig: (
        "output_dir", "pretrained_model_name_or_path", "train_data_dir", "num_train_epochs", "max_train_steps",
        "learning_rate", "train_batch_size", "resolution", "rank", "lora_alpha", "train_text_encoder", "train_unet",
        "optimizer", "lr_scheduler", "mixed_precision", "gradient_checkpointing", "checkpointing_epochs",
        "validation_prompt",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a form.

    Attributes:
        kind: bool, int, float, text, choice, lines (several texts), numbers (whole, as many as the default has) or
            fractions (any number of them).
        optional: whether it may be None, which a form shows as nothing.
        section: the title of its group.
        choices: all choices; for an int, words that may replace a number.
    """

    name: str
    kind: str
    optional: bool
    default: Any
    help: str
    section: str
    choices: tuple[str, ...] = ()


@cache
def fields_of(config_class: type) -> dict[str, Field]:
    """Return all fields by name, in their order."""
    fields = {}
    for name, setting in flat_fields(config_class).items():
        kind, optional, choices = kind_of(setting.type)
        default = None if setting.is_required else setting.default
        fields[name] = Field(name, kind, optional, default, setting.help, setting.title, choices)
    return fields


def groups_of(config_class: type) -> dict[str, list[str]]:
    """Return the fields' names by title: under "" those that are always in view, then each section's others."""
    groups = {"": list(BASIC[config_class])}
    for name, field in fields_of(config_class).items():
        if name not in groups[""]:
            groups.setdefault(field.section, []).append(name)
    return groups


def kind_of(type_: Any) -> tuple[str, bool, tuple[str, ...]]:
    """Return the kind, whether None is allowed, and the choices."""
    if get_origin(type_) in (types.UnionType, Union):
        (kind, _, choices), *words = [kind_of(member) for member in get_args(type_) if member is not types.NoneType]
        return kind, types.NoneType in get_args(type_), sum((more for _, _, more in words), choices)
    if get_origin(type_) is Literal:
        return "choice", False, get_args(type_)
    if get_origin(type_) is tuple:
        item = get_args(type_)[0]
        return {str: "lines", int: "numbers", float: "fractions"}[item], False, ()
    return {bool: "bool", int: "int", float: "float", str: "text"}[type_], False, ()


def typed_value(field: Field, entered: Any) -> Any:
    """Return the entered value in the field's type.

    Raises:
        ConfigError: no number where one is needed, or nothing where something must be.
    """
    if field.kind == "bool":
        return bool(entered)
    if isinstance(entered, list | tuple):  # of a choice of several
        entered = "\n".join(map(str, entered))
    if field.name in FILE_NAMES:
        return tuple(line for line in str(entered or "").split("\n") if line.strip())
    text = "" if entered is None else str(entered).strip()
    if field.kind == "lines":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    if field.kind in ("numbers", "fractions"):
        return tuple(number(field, word) for word in numbers_in(text))
    if field.optional and text in ("", "None"):
        return None
    if field.kind in ("int", "float"):
        return text if text in field.choices else number(field, text)
    if not text and field.default is None:
        raise ConfigError(f"{field.name} is empty, it must be some text")
    return text


def numbers_in(text: str) -> list[str]:
    """Return the numbers of a list. Commas separate them, or are decimal commas if blanks separate them."""
    if "." not in text and re.search(r"\d,\d+,?\s+\S", text):
        return re.sub(r",(?=\s)", " ", text).split()
    return text.replace(",", " ").split()


def number(field: Field, text: str) -> int | float:
    is_thousands = re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text)  # or a decimal: ambiguous, so refused
    if re.fullmatch(r"[+-]?\d*,\d+(e[+-]?\d+)?", text) and not is_thousands:
        text = text.replace(",", ".")
    try:
        if field.kind in ("float", "fractions"):
            return float(text)
        return int(float(text)) if float(text) == int(float(text)) else int(text)
    except (ValueError, OverflowError):
        word = " or ".join(["a number" if field.kind in ("float", "fractions") else "a whole number", *field.choices])
        raise ConfigError(f"{field.name} is {text!r}, it must be {word}") from None


def entered_value(field: Field, value: Any) -> Any:
    """Return the value as a form shows it, the inverse of `typed_value`."""
    if field.kind == "lines":
        return "\n".join(value or ())
    if field.kind == "fractions":
        return " ".join(f"{share:g}" for share in value)
    if field.kind == "numbers":
        return " ".join(map(str, value))
    if field.kind == "float" and value is not None:
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if field.kind in ("text", "choice") and value is None:
        return ""
    if field.kind == "int" and field.choices:
        return str(value)
    return value


def config_of(config_class: type, entered: Mapping[str, Any]) -> Any:
    """Return the config of a form's values; fields that it lacks keep their defaults.

    Raises:
        ConfigError: lists all problems at once.
    """
    values, problems = {}, []
    for name, field in fields_of(config_class).items():
        if name in entered:
            try:
                values[name] = typed_value(field, entered[name])
            except ConfigError as error:
                problems.append(str(error))
    try:
        config: Any = from_flat(config_class, {**stand_ins(config_class), **values})
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError("; ".join(problems), problems)
    return config


def stand_ins(config_class: type) -> dict[str, str]:
    """Return placeholders for fields without a default, so that the others can be checked when those are missing."""
    return {
        field.name: "unnamed"
        for field in fields_of(config_class).values()
        if field.default is None and not field.optional
    }


def named_fields(config_class: type, problem: str) -> list[str]:
    """Return the fields that a problem names."""
    return list(dict.fromkeys(word for word in re.findall(r"\w+", problem) if word in fields_of(config_class)))

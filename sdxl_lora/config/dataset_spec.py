"""Entry for one of several datasets, parsed from text or a YAML mapping. Imports no torch and opens no file."""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction

import yaml

from sdxl_lora.config.paths import pasted_path
from sdxl_lora.config.yaml_text import load_text
from sdxl_lora.errors import ConfigError

TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML's spellings


@dataclasses.dataclass(frozen=True)
class DatasetEntry:
    """A dataset and its part in the training.

    train_data_dir, dataset_name, dataset_config_name: as the settings of the same names.
    repeats: passes over its images per epoch; 0.5 means every other epoch.
    weight: its share of the samples relative to the other datasets' weights, instead of repeats.
    trigger_word: prepended to captions that lack it.
    is_class_images: its images are class images for prior preservation.
    """

    train_data_dir: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    repeats: float = 1.0
    weight: float | None = None
    trigger_word: str = ""
    is_class_images: bool = False

    @property
    def name(self) -> str:
        return self.train_data_dir or self.dataset_name or ""


def parse_entry(text: str) -> DatasetEntry:
    """Parse `data/cat`, `data/cat:3` for three repeats, or a mapping: `{train_data_dir: data/cat, weight: 2}`.

    `D:2024` is a folder on drive D unless a folder named D exists here.

    Raises:
        ConfigError: the text has none of these forms, or a value is invalid.
    """
    if text.lstrip().startswith("{"):
        try:
            values = load_text(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{text!r} is not a mapping in YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"{text!r} is not a mapping of names to values")
        return checked({name: value for name, value in values.items() if value is not None}, text)
    found = re.fullmatch(r"(.+):(\d+(?:\.\d*)?)", text)
    if found and not is_drive(found[1]):
        return checked({"train_data_dir": found[1], "repeats": float(found[2])}, text)
    return checked({"train_data_dir": text}, text)


def is_drive(text: str) -> bool:
    """Return whether the text before a colon is a Windows drive rather than a folder."""
    return bool(re.fullmatch("[A-Za-z]", text)) and not os.path.isdir(text)


def checked(values: dict, text: str) -> DatasetEntry:
    known = {field.name: field for field in dataclasses.fields(DatasetEntry)}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            question = f", did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{text!r} has the unknown key {name!r}{question} (known: {', '.join(known)})")
        if name in ("repeats", "weight"):
            try:
                values[name] = float(str(value).replace(".inf", "inf").replace(".nan", "nan"))  # YAML's spellings
            except (TypeError, ValueError):
                raise ConfigError(f"{name} in {text!r} must be a number") from None
            if not (math.isfinite(values[name]) and values[name] > 0):
                raise ConfigError(f"{name} in {text!r} must be above 0")
        elif name == "is_class_images":
            if str(value).lower() not in TRUTHS:
                raise ConfigError(f"{name} in {text!r} must be true or false")
            values[name] = TRUTHS[str(value).lower()]
        elif not isinstance(value, str):
            raise ConfigError(f"{name} in {text!r} must be a single string")
    for name in ("train_data_dir", "dataset_name"):
        if name in values:
            values[name] = pasted_path(values[name])
    if "trigger_word" in values:
        values["trigger_word"] = values["trigger_word"].strip()
    entry = DatasetEntry(**values)
    if (entry.train_data_dir is None) == (entry.dataset_name is None):
        raise ConfigError(f"{text!r} must have either train_data_dir or dataset_name")
    if entry.weight is not None and "repeats" in values:
        raise ConfigError(f"{text!r} has both repeats and a weight: give only one of them")
    return entry


def parse_entries(texts: Sequence[str]) -> list[DatasetEntry]:
    """Parse several entries; raise ConfigError if one is invalid or only some of them have a weight."""
    entries = [parse_entry(text) for text in texts]
    unweighted = [entry.name for entry in entries if entry.weight is None]
    if unweighted and len(unweighted) < len(entries):
        raise ConfigError(f"give every dataset a weight, or none of them: {', '.join(unweighted)} has none")
    return entries


def repeats_of(entries: Sequence[DatasetEntry], images: Sequence[Fraction | int]) -> list[Fraction]:
    """Return each dataset's passes per epoch, given its number of images.

    With weights, the dataset passed least often is passed once, and the samples are shared in proportion to weight.
    """
    if not entries or entries[0].weight is None:
        return [Fraction(str(entry.repeats)) for entry in entries]
    rates = [Fraction(str(entry.weight)) / count for entry, count in zip(entries, images, strict=True)]
    return [rate / min(rates) for rate in rates]

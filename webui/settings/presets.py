"""Presets of the training form: the files in examples/, chosen by subject and by graphics card.

A subject sets what is learned and how; a card fits that into its memory, with as many images a step.
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import flat_fields, flat_values
from sdxl_lora.config.train import TrainConfig

FOLDER = Path(__file__).parents[2] / "examples"
SUBJECTS = ("character", "style", "anime", "flow")
CARDS = {"vram_6gb": 6, "vram_8gb": 8, "vram_12gb": 12, "t4": 15, "vram_16gb": 16, "vram_24gb": 24}  # GB
OF_CARDS = (
    "base_precision", "optimizer", "gradient_checkpointing", "train_batch_size", "gradient_accumulation_steps",
    "mixed_precision", "variant",
)  # fmt: skip
OF_NO_PRESET = ("train_data_dir", "output_dir", "validation_prompt")  # the person sets these


@cache
def settings_of(name: str) -> dict[str, Any]:
    """Return the settings in a preset's file, by name."""
    path = FOLDER / f"{name}.yaml"
    values = flat_values(load_config(TrainConfig, ["--config", str(path)]))
    return {key: values[key] for key in yaml.safe_load(path.read_text(encoding="utf-8")) if key not in OF_NO_PRESET}


@cache
def preset_settings() -> dict[str, Any]:
    """Return every setting that some preset sets, at its default."""
    fields = flat_fields(TrainConfig)
    return {key: fields[key].default for name in (*SUBJECTS, *CARDS) for key in settings_of(name)}


def preset(subject: str | None, card: str | None) -> dict[str, Any]:
    """Return the settings of a subject on a card, by name; settings of neither are at their defaults.

    So another choice leaves nothing of the one before. A card alone gives its whole file; with a subject it only sets
    what takes memory, and a step keeps the subject's number of images.
    """
    settings = preset_settings() | (settings_of(subject) if subject else {})
    if not card:
        return settings
    of_card = settings_of(card)
    if not subject:
        return settings | of_card
    a_step = settings["train_batch_size"] * settings["gradient_accumulation_steps"]
    settings |= {name: of_card.get(name, flat_fields(TrainConfig)[name].default) for name in OF_CARDS}
    at_once = min(settings["train_batch_size"], a_step)
    return settings | {"train_batch_size": at_once, "gradient_accumulation_steps": a_step // at_once}


def prompts_of(subject: str, trigger_word: str) -> list[str]:
    """Return the prompts of a subject's preset with another trigger word."""
    prompts = yaml.safe_load((FOLDER / f"{subject}.yaml").read_text(encoding="utf-8"))["validation_prompt"]
    return [prompt.replace("sks", trigger_word, 1) for prompt in prompts]


def card_for(memory_gib: float) -> str | None:
    """Return the largest card's preset that fits this memory; None for less than the smallest."""
    fitting = [name for name, size in CARDS.items() if name != "t4" and size <= memory_gib + 0.6]  # 24 GB report 23.6
    return fitting[-1] if fitting else None

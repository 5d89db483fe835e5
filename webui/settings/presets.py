"""Presets of the training form: the files in examples/, chosen by what is trained and by the card that trains it.

A subject says what is learned and how; a card says how that fits into its memory, with as many images a step.
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
OF_NO_PRESET = ("train_data_dir", "output_dir", "validation_prompt")  # these are the person's


@cache
def settings_of(name: str) -> dict[str, Any]:
    """What a preset's file sets, by the setting's name."""
    path = FOLDER / f"{name}.yaml"
    values = flat_values(load_config(TrainConfig, ["--config", str(path)]))
    return {key: values[key] for key in yaml.safe_load(path.read_text(encoding="utf-8")) if key not in OF_NO_PRESET}


@cache
def preset_settings() -> dict[str, Any]:
    """Every setting that some preset sets, at its default."""
    fields = flat_fields(TrainConfig)
    return {key: fields[key].default for name in (*SUBJECTS, *CARDS) for key in settings_of(name)}


def preset(subject: str | None, card: str | None) -> dict[str, Any]:
    """Return the settings of a subject on a card, each by its name; those of no choice are the defaults.

    Another choice so leaves nothing of the one before. A card alone is its whole file; beside a subject it only
    settles what takes memory, and the images of a step stay as many as the subject has.
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
    """Return what a subject's preset draws, with another trigger word in place of the file's."""
    prompts = yaml.safe_load((FOLDER / f"{subject}.yaml").read_text(encoding="utf-8"))["validation_prompt"]
    return [prompt.replace("sks", trigger_word, 1) for prompt in prompts]


def card_for(memory_gib: float) -> str | None:
    """The largest card's preset that a card of this memory can have; None for less than the smallest."""
    fitting = [name for name, size in CARDS.items() if name != "t4" and size <= memory_gib + 0.6]  # it says 23.6 of 24
    return fitting[-1] if fitting else None

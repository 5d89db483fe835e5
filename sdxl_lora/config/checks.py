"""Checks shared by several settings. Each returns sentences, so that all problems are reported at once."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from sdxl_lora.config.unet_blocks import parse_blocks
from sdxl_lora.errors import ConfigError

OPTIMIZERS = (
    "adamw", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "prodigy", "prodigy_plus_schedule_free", "adafactor",
    "schedule_free_adamw", "came", "adopt", "muon",
)  # fmt: skip
PRODIGIES = ("prodigy", "prodigy_plus_schedule_free")  # estimate one learning rate, multiplied by the one given
SCHEDULE_FREE = ("schedule_free_adamw", "prodigy_plus_schedule_free")  # average the weights themselves


def blocks_problems(name: str, texts: Sequence[str], number: type) -> list[str]:
    """Return a sentence if values per UNet block cannot be parsed; see unet_blocks.py."""
    try:
        parse_blocks(texts, number)
    except ValueError as error:
        return [f"{name}: {error}"]
    return []


def part_problems(name: str, part: str | None) -> list[str]:
    """Return a sentence if `part` is not a valid part of a whole, such as 1/4."""
    if part is None or ((found := re.fullmatch(r"(\d+)/(\d+)", part)) and 1 <= int(found[1]) <= int(found[2])):
        return []
    return [f"{name} is {part!r}, it must be a part of the whole, such as 1/4 or 4/4"]


def keyword_argument(text: str) -> tuple[str, Any]:
    """Split "name=value" into (name, value); raise ConfigError if it cannot be parsed."""
    name, equals, value = text.partition("=")
    try:
        if not (equals and name.strip().isidentifier()):
            raise ValueError
        return name.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        raise ConfigError(
            f"optimizer_args has {text!r}, it must be name=value with a Python value: 0.1, True, (0.9, 0.99), 'text'"
        ) from None


def multiple_of_8_problem(resolution: int) -> str:
    below = resolution // 8 * 8
    return f"resolution is {resolution}, it must be a multiple of 8; nearest: {below}, {below + 8}"


def raise_all(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems), problems)

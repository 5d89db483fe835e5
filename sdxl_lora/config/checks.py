"""Checks that several settings share. Each returns sentences, so that all problems are told at once."""

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

from sdxl_lora.errors import ConfigError

OPTIMIZERS = (
    "adamw", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "prodigy", "adafactor", "schedule_free_adamw",
)  # fmt: skip


def number_problems(
    config: Any, positive: Sequence[str] = (), not_negative: Sequence[str] = (), below_one: Sequence[str] = ()
) -> list[str]:
    """A sentence for each named field that is NaN or out of range; fields that are None pass."""

    def outside(names: Sequence[str], allowed, range_text: str) -> list[str]:
        values = {name: getattr(config, name) for name in names}
        return [
            f"{name} is {value}, it must be {range_text}"
            for name, value in values.items()
            if value is not None and not (math.isfinite(value) and allowed(value))
        ]

    return [
        *outside(positive, lambda value: value > 0, "above 0"),
        *outside(not_negative, lambda value: value >= 0, "0 or more"),
        *outside(below_one, lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ]


def part_problems(name: str, part: str | None) -> list[str]:
    """A sentence where a part of a whole is none."""
    if part is None or ((found := re.fullmatch(r"(\d+)/(\d+)", part)) and 1 <= int(found[1]) <= int(found[2])):
        return []
    return [f"{name} is {part!r}, it must be a part of a whole like 1/4 or 4/4"]


def keyword_argument(text: str) -> tuple[str, Any]:
    """("name", value) of "name=value"; ConfigError where it is not that."""
    name, equals, value = text.partition("=")
    try:
        if not (equals and name.strip().isidentifier()):
            raise ValueError
        return name.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        raise ConfigError(
            f"optimizer_args has {text!r}, it must be name=value with Python's values: 0.1, True, (0.9, 0.99), 'text'"
        ) from None


def multiple_of_8_problem(resolution: int) -> str:
    below = resolution // 8 * 8
    return f"resolution is {resolution}, it must be a multiple of 8; nearest: {below}, {below + 8}"


def raise_all(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems), problems)

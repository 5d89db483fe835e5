"""Requests to compare.py, and the paths of its images. Imports no torch."""

import math
from pathlib import Path

import yaml

from sdxl_lora.errors import ConfigError
from webui.runs.listing import stages
from webui.settings.fields import numbers_in

MOST_IMAGES = 200


def image_path(folder: Path, prompt: int, stage: str, weight: float) -> Path:
    return folder / f"row-{prompt}-{stage or 'base'}-{weight:g}.png"


def drawing_request(
    run: Path, chosen: list[str], prompts: str, weights: str, seed: float, steps: float, guidance: float, side: float
) -> dict:
    """Return the request that a form's values describe.

    Raises:
        ConfigError: lists all problems at once.
    """
    problems = []
    lines = [line.strip() for line in (prompts or "").splitlines() if line.strip()]
    there = stages(run)
    if not lines:
        problems.append("prompts is empty, it must be some text")
    if not chosen or not set(chosen) <= set(there):
        problems.append("stages: choose at least one stage of this run")
    numbers = [0.0]
    try:
        numbers = [float(word.replace(",", ".")) for word in numbers_in(weights or "")]
        if not numbers or not all(math.isfinite(number) and abs(number) <= 4 for number in numbers):
            raise ValueError
    except ValueError:
        problems.append(f"weights is {weights!r}, it must be numbers from -4 to 4")
    if not is_whole(seed, 0, 2**32 - 1):
        problems.append(f"seed is {seed}, it must be a whole number from 0 to {2**32 - 1}")
    if not is_whole(steps, 1, 200):
        problems.append(f"steps is {steps}, it must be a whole number from 1 to 200")
    if guidance is None or not 0 <= guidance <= 50:
        problems.append(f"guidance_scale is {guidance}, it must be a number from 0 to 50")
    if not is_whole(side, 8, 4096) or side % 8:
        problems.append(f"side is {side}, it must be a multiple of 8 up to 4096")
    if len(lines) * (1 + len(chosen or ()) * len(numbers)) > MOST_IMAGES:
        problems.append(f"that is more than {MOST_IMAGES} images: ask for fewer")
    if problems:
        raise ConfigError("; ".join(problems), problems)
    return {
        "run": str(run), "stages": chosen, "prompts": lines, "weights": numbers, "seed": int(seed),
        "steps": int(steps), "guidance_scale": float(guidance), "height": int(side), "width": int(side),
    }  # fmt: skip


def is_whole(number: float | None, low: int, high: int) -> bool:
    return number is not None and math.isfinite(number) and number == int(number) and low <= number <= high


def read_request(folder: Path) -> dict | None:
    """Return the request of a drawing; None if it cannot be read."""
    try:
        request = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    kinds = {"prompts": str, "stages": str, "weights": int | float}
    is_whole_one = isinstance(request, dict) and all(isinstance(request.get(name), list) for name in kinds)
    return request if is_whole_one and all(isinstance(v, k) for n, k in kinds.items() for v in request[n]) else None

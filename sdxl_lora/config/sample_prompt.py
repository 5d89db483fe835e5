"""Sample prompts drawn during training, as users write them: text, then optional flags. stdlib only.

    a cat on a sofa --w 1024 --h 768 --d 42 --l 7.5 --s 30 --n blurry, dark

The flags are those of kohya's sample prompts: width, height, seed, guidance, steps, negative prompt.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdxl_lora.config.trigger_word import without_trigger_words
from sdxl_lora.errors import ConfigError

OPTIONS = {
    "w": ("width", int), "h": ("height", int), "d": ("seed", int), "l": ("guidance_scale", float), "s": ("steps", int),
    "n": ("negative", str),
}  # fmt: skip
KNOWN = "--w width, --h height, --d seed, --l guidance, --s steps, --n negative prompt"


@dataclass(frozen=True)
class SamplePrompt:
    """An image to draw; fields that are None take the run's defaults.

    is_without_trigger: this is the preceding prompt with its trigger word removed.
    """

    text: str
    negative: str = ""
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    is_without_trigger: bool = False

    def seed_of(self, image_number: int) -> int:
        assert self.seed is not None, "nothing is left open"
        return self.seed + image_number

    def describe(self, image_number: int = 0) -> str:
        """Return the generation parameters in A1111's format, which clients and file managers display."""
        negative = f"\nNegative prompt: {self.negative}" if self.negative else ""
        return (
            f"{self.text}{negative}\nSteps: {self.steps}, Sampler: Euler, CFG scale: {self.guidance_scale:g}, "
            f"Seed: {self.seed_of(image_number)}, Size: {self.width}x{self.height}"
        )


def parse_prompt(line: str) -> SamplePrompt:
    """Parse a prompt line; raise ConfigError if an option is unknown, repeated or invalid."""
    text, *options = re.split(r"(?:^|\s+)--(?=\w)", line.strip())
    values: dict[str, Any] = {}
    for option in options:
        found = re.fullmatch(r"(\w+)[\s=]*(.*)", option.strip(), re.DOTALL)
        assert found, "it was split where a letter follows"
        letter, value = found.groups()
        if letter not in OPTIONS:
            raise ConfigError(f"the prompt {line!r} has an unknown option --{letter}; the options are {KNOWN}")
        name, kind = OPTIONS[letter]
        if name in values:
            raise ConfigError(f"the prompt {line!r} has --{letter} twice")
        try:
            values[name] = kind(re.sub(r"^([\"'])(.*)\1$", r"\2", value, flags=re.DOTALL))
        except ValueError:
            raise ConfigError(f"the prompt {line!r} has --{letter} {value!r}, it must be a number") from None
    check_values(values, line)
    return SamplePrompt(text, **values)


def check_values(values: dict, line: str) -> None:
    """Raise ConfigError if a number is out of range."""
    ranges = {
        "width": (lambda value: value > 0 and value % 8 == 0, "a multiple of 8 above 0"),
        "height": (lambda value: value > 0 and value % 8 == 0, "a multiple of 8 above 0"),
        "seed": (lambda value: 0 <= value < 2**63, "from 0 to 2^63"),
        "guidance_scale": (lambda value: math.isfinite(value) and value >= 0, "at least 0"),
        "steps": (lambda value: value > 0, "above 0"),
    }
    for name, (is_allowed, words) in ranges.items():
        if name in values and not is_allowed(values[name]):
            raise ConfigError(f"the prompt {line!r} has a {name} of {values[name]}, it must be {words}")


def read_prompts_file(path: str) -> list[str]:
    """Return the lines of a text file, without blank lines and lines that begin with #.

    Raises:
        ConfigError: the file cannot be read or holds no prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read validation_prompts_file {path}: {error}") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise ConfigError(f"validation_prompts_file {path} holds no prompts: write one per line")
    return prompts


def with_defaults(prompt: SamplePrompt, **defaults) -> SamplePrompt:
    """Return the prompt with its None fields filled from `defaults`."""
    return replace(prompt, **{name: value for name, value in defaults.items() if getattr(prompt, name) is None})


def with_partners(prompts: Sequence[SamplePrompt], trigger_words: Sequence[str]) -> list[SamplePrompt]:
    """Follow each prompt that has a trigger word with a copy that lacks it and is otherwise equal.

    Raises:
        ConfigError: there is no trigger word, or no prompt has one.
    """
    if not trigger_words:
        raise ConfigError(
            "validation_without_trigger needs a trigger word, which `python -m preprocess --trigger_word` writes into "
            "the README.md of the dataset (trigger_word: sks, in its header)"
        )
    pairs = [(prompt, without_trigger_words(prompt.text, trigger_words)) for prompt in prompts]
    if all(text == prompt.text for prompt, text in pairs):
        words = " or ".join(map(repr, trigger_words))
        raise ConfigError(f"validation_without_trigger: no validation prompt contains the trigger word {words}")
    return [
        one
        for prompt, text in pairs
        for one in ([prompt] if text == prompt.text else [prompt, replace(prompt, text=text, is_without_trigger=True)])
    ]

"""Model card of a trained LoRA, the README.md that the Hub shows: description, use, training. Strings only."""

import json
import re
from collections.abc import Mapping, Sequence

from sdxl_lora.lora.formats.metadata import public_name, usage_lines

TAGS = ("text-to-image", "diffusers", "stable-diffusion-xl", "lora", "template:sd-lora")


def model_card(
    name: str,
    base_model: str,
    trigger_word: str = "",
    prompt: str = "",
    samples: Sequence[tuple[str, str]] = (),
    settings: Mapping[str, object] | None = None,
    repository: str | None = None,
    grid: str | None = None,
) -> str:
    """Return the card as Markdown with the Hub's header.

    Args:
        name: of the LoRA file without `.safetensors`.
        base_model: Hub id; of a path only the last part is shown.
        prompt: for the code to copy; the trigger word is put in front.
        samples: (prompt, image's path relative to the card).
        settings: of the training, for a table; nothing private.
        repository: on the Hub, from which the code loads; None where the file lies beside the card.
        grid: path of a grid of images by steps, relative to the card.
    """
    base = public_name(base_model)
    parts = [
        "---",
        *_header(base, trigger_word, samples),
        "---",
        "",
        f"# {name}",
        "",
        f"A LoRA for Stable Diffusion XL, trained on {base}."
        + (f" Write **{_escaped(trigger_word)}** in the prompt to call it up." if trigger_word else ""),
        "",
        *(["<Gallery />", ""] if samples else []),
        *_usage(name, base, trigger_word, prompt, repository),
    ]
    if grid:
        parts += ["", "## How it learned", "", f"![prompts by steps]({grid})"]
    if settings:
        parts += ["", "## Training", "", "| setting | value |", "|---|---|"]
        parts += [f"| {_escaped(key)} | {_escaped(value)} |" for key, value in settings.items()]
    return "\n".join(parts) + "\n"


def strength_section(name: str, trigger_word: str, prompt: str, strength: float, reason: str) -> list[str]:
    """Return the lines that recommend a LoRA's strength, with the reason.

    Args:
        name: of the LoRA file without `.safetensors`.
    """
    python, tag = usage_lines(name, trigger_word, prompt, strength)
    return [
        f"`{name}.safetensors` is meant for strength **{strength:g}**.",
        "",
        f"```python\n{python}\n```",
        "",
        f"```\n{tag}\n```",
        "",
        _escaped(reason),
    ]


def with_section(card: str, heading: str, lines: Sequence[str]) -> str:
    """Return the card with this section, replacing one of the same heading or at the end; no lines remove it."""
    before, *after = re.split(rf"^## {re.escape(heading)}\n", card, maxsplit=1, flags=re.MULTILINE)
    rest = re.split(r"^(?=## )", after[0], maxsplit=1, flags=re.MULTILINE)[1:] if after else []
    section = "\n".join([f"## {heading}", "", *lines]) + "\n" if lines else ""
    return "\n\n".join(part.strip("\n") for part in (before, section, *rest) if part) + "\n"


def _header(base: str, trigger_word: str, samples: Sequence[tuple[str, str]]) -> list[str]:
    """Return the lines of YAML that the Hub reads."""
    header = ["library_name: diffusers", "pipeline_tag: text-to-image"]
    header += [f"base_model: {_quoted(base)}"] if "/" in base else []  # the Hub refuses a card that names a local file
    header += [f"instance_prompt: {_quoted(trigger_word)}"] if trigger_word else []
    header += ["tags:", *(f"- {_quoted(tag)}" for tag in TAGS)]
    if samples:
        header += ["widget:"]
        for text, path in samples:
            header += [f"- text: {_quoted(text)}", "  output:", f"    url: {_quoted(path)}"]
    return header


def _usage(name: str, base: str, trigger_word: str, prompt: str, repository: str | None) -> list[str]:
    """Return code to copy, for diffusers and for clients that read a prompt's tags."""
    python, tag = usage_lines(name, trigger_word, prompt)
    load, draw = python.split("; ", 1)
    if repository:
        load = f"pipe.load_lora_weights({_quoted(repository)}, weight_name={_quoted(f'{name}.safetensors')})"
    return [
        "## Use",
        "",
        "diffusers:",
        "",
        "```python",
        "import torch",
        "from diffusers import StableDiffusionXLPipeline",
        "",
        f'pipe = StableDiffusionXLPipeline.from_pretrained({_quoted(base)}, torch_dtype=torch.float16).to("cuda")',
        load,
        draw,
        "```",
        "",
        f"ComfyUI, A1111, Forge: put `{name}.safetensors` into the LoRA folder and prompt with",
        "",
        f"```\n{tag}\n```",
        "",
        f"`{name}.safetensors` loads in every client; `pytorch_lora_weights.safetensors` is the same for diffusers.",
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # valid in YAML and in Python


def _escaped(value: object) -> str:
    """Return the value as one line that Markdown and HTML show verbatim."""
    text = " ".join(str(value).split())
    for character in "\\`*_|[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;")

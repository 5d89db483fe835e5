"""Results of a finished run beside the LoRA files: copies, side files, a model card, and a summary."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.errors import CheckpointError
from sdxl_lora.lora.export import copy_lora, write_side_files
from sdxl_lora.lora.formats.metadata import public_name, usage_lines
from sdxl_lora.publish.model_card import model_card
from sdxl_lora.run.checkpoints import lora_file_of
from sdxl_lora.run.status import replace_text
from sdxl_lora.sampling.generate import GRID_NAME, sample_path


def deliver(lora: Path, base: str, trigger_word: str, step: int, side_files: bool, loras_dir: str | None) -> list[Path]:
    """Write side files and the copy for a client's folder, where asked for, and return their paths.

    Args:
        lora: the file for ComfyUI, A1111 and Forge, in the run's folder.
        step: of the sample used as preview image.
    """
    written = []
    if side_files:
        image = sample_path(lora.parent / "samples", step, 0, 0)
        png = image.read_bytes() if image.exists() else b""
        written += write_side_files(lora, trigger_word, f"LoRA of {public_name(base)}", png)
    if loras_dir:
        written.append(copy_lora(lora, loras_dir))
    return written


def write_card(
    folder: Path,
    name: str,
    base: str,
    trigger_word: str,
    prompts: Sequence[SamplePrompt],
    step: int,
    settings: Mapping,
    repository: str | None = None,
) -> None:
    """Write the model card, README.md in the run's folder, which the Hub shows."""
    samples = [
        (prompt.text, str(sample_path(Path("samples"), step, number, 0)))
        for number, prompt in enumerate(prompts)
        if not prompt.is_without_trigger and sample_path(folder / "samples", step, number, 0).exists()
    ]
    grid = Path("samples", GRID_NAME)
    card = model_card(
        name,
        base,
        trigger_word,
        prompts[0].text if prompts else "",
        samples,
        settings,
        repository,
        str(grid) if samples and (folder / grid).exists() else None,
    )
    replace_text(folder / "README.md", card)


def best_lora(folder: Path, checkpoint: str | None, name: str, say: Callable[[str], None]) -> list[Path]:
    """Write <name>-best.safetensors, the LoRA of the best checkpoint, and return its path in a list.

    Args:
        checkpoint: its name; None where there is no best one.
    """
    if checkpoint is None:
        return []
    target = folder / f"{name}-best.safetensors"
    try:
        return [copy_lora(lora_file_of(folder / checkpoint), folder, target.name)]
    except CheckpointError as error:
        say(f"there is no {target.name}: {error}")
        return []


def summary(
    files: Sequence[Path],
    name: str,
    trigger_word: str,
    samples: Path,
    best_name: str = "",
    best_value: str = "",
) -> str:
    """Return the places of all results, with a line to paste for each client.

    Args:
        best_name, best_value: name and value of the measurement that chose the best checkpoint; "" without one.
    """
    for_diffusers, for_others = usage_lines(name, trigger_word)
    return "\n".join(
        [
            "LoRA files:",
            *(f"  {path}" for path in files),
            *([f"samples: {samples}"] if samples.is_dir() else []),
            *([f"{best_name}: {best_value}"] if best_value else []),
            f"trigger word: {trigger_word or 'none'}",
            f"diffusers: {for_diffusers}",
            f"ComfyUI, A1111, Forge: {for_others}",
        ]
    )

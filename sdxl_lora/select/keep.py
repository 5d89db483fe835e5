"""Results of a choice beside its report: the recommended LoRA, with its strength in metadata and model card."""

from collections.abc import Callable

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.lora.export import copy_lora, write_side_files
from sdxl_lora.lora.formats.metadata import strength_metadata
from sdxl_lora.publish.model_card import strength_section, with_section
from sdxl_lora.run.status import replace_text
from sdxl_lora.select.choice import Choice
from sdxl_lora.select.scores import Recommendation

HEADING = "Recommended strength"


def keep_recommended(
    config: TrainConfig, choice: Choice, recommendation: Recommendation, info: Callable[[str], None]
) -> None:
    """Write <name>-recommended.safetensors, and a section about it in README.md.

    If nothing is recommended, remove the section, and report the file of an earlier choice.
    """
    run_dir, name = config.run_dir, f"{config.lora_name}-recommended"
    lora, cell, section = run_dir / f"{name}.safetensors", recommendation.cell, []
    trigger_word = ", ".join(choice.trigger_words)
    if cell is None:
        if lora.exists():
            info(f"{lora} is from an earlier choice, which this one does not repeat")
    else:
        source = next(one.lora for one in choice.candidates if one.step == cell.step)
        copy_lora(source, run_dir, lora.name, strength_metadata(cell.strength))
        info(f"wrote {lora}")
        if config.output.save_side_files:
            write_side_files(lora, trigger_word, recommendation.reason, strength=cell.strength)
        if config.output.loras_dir:
            info(f"wrote {copy_lora(lora, config.output.loras_dir)}")
        section = strength_section(name, trigger_word, choice.prompts[0].text, cell.strength, recommendation.reason)
    card = run_dir / "README.md"
    if not card.is_file():
        info(f"there is no {card} yet to write the strength into: the training writes it at its end")
        return
    replace_text(card, with_section(card.read_text(encoding="utf-8"), HEADING, section))

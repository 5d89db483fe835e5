"""Checks of the question put to a captioner: a task for Florence-2, a prompt for others. Loads no model."""

import difflib
import re
from collections.abc import Sequence

from sdxl_lora.errors import ConfigError

CAPTIONS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>")  # a fine-tune has its own
# outputs of the tasks that give no caption, by their names in transformers' Florence2Processor
NOT_CAPTIONS = {
    "<OD>": "boxes", "<DENSE_REGION_CAPTION>": "boxes", "<REGION_PROPOSAL>": "boxes", "<OCR_WITH_REGION>": "boxes",
    "<CAPTION_TO_PHRASE_GROUNDING>": "boxes for a phrase", "<REFERRING_EXPRESSION_SEGMENTATION>": "polygons",
    "<REGION_TO_SEGMENTATION>": "polygons", "<OPEN_VOCABULARY_DETECTION>": "boxes", "<REGION_TO_CATEGORY>": "a class",
    "<REGION_TO_DESCRIPTION>": "a description of a region", "<REGION_TO_OCR>": "a region's text",
}  # fmt: skip
USUAL = "<DETAILED_CAPTION>"


def check_task(task: str, prompt: str | None, model_type: str, takes_prompt: bool) -> dict[str, str]:
    """Check the task and return the settings without effect on this captioner, each with a sentence that says so.

    Args:
        model_type: of the captioner, from its config.
        takes_prompt: its processor takes text beside the image.
    Raises:
        ConfigError: Florence-2 does not know the task, or the task gives no caption.
    """
    unused = {}
    if model_type == "florence2":
        _check_florence2_task(task)
        if prompt:
            unused["caption_prompt"] = (
                "caption_prompt has no effect on Florence-2, which takes caption_task instead: leave it out"
            )
        return unused
    if task not in (USUAL, "<OCR>"):
        instead = ", and use caption_prompt" if takes_prompt else ""
        unused["caption_task"] = (
            f"caption_task {task} has no effect on a {model_type}, only on Florence-2: leave it out{instead}"
        )
    if prompt and not takes_prompt:
        unused["caption_prompt"] = (
            f"caption_prompt has no effect on this {model_type}, which takes only images: leave it out"
        )
    return unused


def refuse_unused(unused: Sequence[dict[str, str]]) -> None:
    """Raise ConfigError for a setting that has no effect on any of the captioners.

    Args:
        unused: the settings without effect on each captioner, see check_task.
    """
    for setting, sentence in unused[0].items():
        if all(setting in of_captioner for of_captioner in unused):
            raise ConfigError(sentence)


def _check_florence2_task(task: str) -> None:
    if task in CAPTIONS:
        return
    meant = bracketed(task)
    known = next((known for known in (*CAPTIONS, *NOT_CAPTIONS) if known in task.upper() or known == meant), None)
    if known in NOT_CAPTIONS:
        raise ConfigError(
            f"caption_task {task} gives {NOT_CAPTIONS[known]}, not a caption: use <CAPTION>, "
            "<DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>, <OCR>, or a task of the fine-tune you load"
        )
    if near := [known] if known else difflib.get_close_matches(meant, CAPTIONS, n=1, cutoff=0.88):
        raise ConfigError(f"caption_task {task} is unknown, did you mean {near[0]}?")
    if not re.match(r"<\w+>", task):
        raise ConfigError(
            f"caption_task {task} is not a Florence-2 task, which is written in angle brackets: use <CAPTION>, "
            f"<DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>, or a task of the fine-tune you load, perhaps {meant}"
        )


def bracketed(task: str) -> str:
    """Return a task in Florence-2's spelling: " detailed caption" -> <DETAILED_CAPTION>."""
    return f"<{'_'.join(re.findall(r'[A-Z0-9]+', task.upper()))}>"

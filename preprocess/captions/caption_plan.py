"""Who writes the captions that no person has written, by the settings. Loads no model."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image

from preprocess.captions.captioner import captioner, captioner_name, check_captioner, content_name
from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.preprocess import PreprocessConfig


class Caption(Protocol):
    """Return as many texts as images; it wants `batch_size` of them next."""

    batch_size: int

    def __call__(self, images: list[Image.Image]) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class CaptionPlan:
    """Who writes the captions that no person has written.

    Attributes:
        name: model, task and options, by which earlier versions kept captions.
        content: a name of all that makes a caption, the captioner's files and its options; a caption is made again
            where it differs. Given the hidden folder, for what it keeps of them.
        load: context manager of the captioner, which frees it; None for no captioner. The captioner says by its
            attribute batch_size how many pictures it wants next.
        max_new_tokens: the length at which a caption is cut off, for the warning.
        check: raises ConfigError, before any work, where the captioner could not be loaded.
        clean: leave out stock phrases such as "The image shows".
        may_be_empty: no words are an answer, and not a failure.
    """

    name: str = "none"
    content: Callable[[Path], str] = lambda hidden: "none"
    load: Callable[[], AbstractContextManager[Caption]] | None = None
    check: Callable[[], None] = lambda: None
    max_new_tokens: int | None = None
    fallback: str = ""
    clean: bool = True
    recaption: bool = False
    may_be_empty: bool = False


def plan_of(config: PreprocessConfig, may_be_empty: bool = False) -> CaptionPlan:
    plan = CaptionPlan(
        fallback=config.captions.fallback_caption,
        clean=config.captions.clean_captions,
        recaption=config.captions.recaption,
        may_be_empty=may_be_empty,
    )
    if config.captioner.caption_model == "none":
        return plan
    return dataclasses.replace(
        plan,
        name=captioner_name(config.captioner),
        content=partial(content_name, config.captioner),
        max_new_tokens=config.captioner.caption_max_new_tokens,
        load=partial(captioner, config.captioner),
        check=partial(check_captioner, config.captioner),
    )


def reader_of(config: PreprocessConfig) -> CaptionPlan | None:
    """Florence-2 at its task of reading, with --ocr."""
    if not config.captioner.ocr:
        return None
    return plan_of(replace_flat(config, caption_task="<OCR>", caption_prompt=None), may_be_empty=True)

"""The captioners that the settings ask for. Loads no model."""

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from PIL import Image

from preprocess.captions.caption_task import USUAL, refuse_unused
from preprocess.captions.captioner import captioner, captioner_name, check_captioner, content_name
from preprocess.captions.tagger import check_tagger, is_tagger, tagger, tagger_content
from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.sections.preprocess import CaptionerConfig, TaggerConfig
from sdxl_lora.errors import ConfigError


class Caption(Protocol):
    """Return as many texts as images; `batch_size` is the number of images it asks for next.

    may_be_empty: an empty text is an answer and not a failure.
    """

    batch_size: int
    may_be_empty: bool

    def __call__(self, images: list[Image.Image]) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class OneCaptioner:
    """A transformers captioner or a tagger; its files tell which, and are read only when needed.

    Attributes:
        config: the captioner's settings, with this model alone. tags: settings of a tagger.
    """

    config: CaptionerConfig
    tags: TaggerConfig

    @property
    def name(self) -> str:
        """Return the model, task and options, the name under which earlier versions stored captions."""
        return captioner_name(self.config)

    @property
    def is_tagger(self) -> bool:
        return is_tagger(self.config.model)

    def content(self, hidden: Path) -> str:
        """Return a key of the files and options that determine a caption; a caption under another key is made again.

        Args:
            hidden: folder that stores the digests of the files.
        """
        if self.is_tagger:
            return tagger_content(self.config.model, self.tags, hidden)
        return content_name(self.config, hidden)

    def load(self) -> AbstractContextManager[Caption]:
        if self.is_tagger:
            return tagger(self.config.model, self.tags, self.config.caption_batch_size)
        return captioner(self.config)

    def check(self) -> dict[str, str]:
        """Return the settings without effect on this captioner, each with a sentence that says so.

        Raises:
            ConfigError: the captioner cannot be loaded.
        """
        if not self.is_tagger:
            said = "{} has no effect, since no caption_model is a tagger: leave it out"
            return check_captioner(self.config) | {name: said.format(name) for name in changed(self.tags)}
        if self.config.caption_task == "<OCR>":
            raise ConfigError(f"--ocr needs Florence-2; caption_model {self.config.model} is a tagger")
        check_tagger(self.config.model, self.tags)
        asked = {
            "caption_task": self.config.caption_task != USUAL,
            "caption_prompt": bool(self.config.caption_prompt),
        }
        said = "{} has no effect on a tagger, which takes no prompt: leave it out"
        return {setting: said.format(setting) for setting, is_set in asked.items() if is_set}


def changed(tags: TaggerConfig) -> list[str]:
    """Return the names of the tagger's settings that differ from their defaults."""
    return [field.name for field in dataclasses.fields(tags) if getattr(tags, field.name) != field.default]


@dataclasses.dataclass(frozen=True)
class CaptionPlan:
    """Plan for captioning the images that have no caption of a person.

    Attributes:
        captioners: empty for no captioner.
        is_several: keep the texts of several captioners as several captions of an image instead of joining them.
        max_new_tokens: the length at which a caption is cut off, for the warning.
        clean: leave out stock phrases such as "The image shows".
        per_line: each line of a person's caption is a caption of its own.
    """

    captioners: tuple[OneCaptioner, ...] = ()
    is_several: bool = False
    max_new_tokens: int | None = None
    fallback: str = ""
    clean: bool = True
    recaption: bool = False
    per_line: bool = False

    def check(self) -> None:
        """Raise ConfigError, before any work, if a captioner cannot be loaded or a setting has no effect."""
        refuse_unused([one.check() for one in self.captioners])


def plan_of(config: PreprocessConfig) -> CaptionPlan:
    words = config.captions
    return CaptionPlan(
        tuple(OneCaptioner(one, config.tagger) for one in config.captioner.of_each()),
        config.captioner.caption_join == "several",
        config.captioner.caption_max_new_tokens,
        words.fallback_caption,
        words.clean_captions,
        words.recaption,
        words.captions_per_line,
    )


def reader_of(config: PreprocessConfig) -> CaptionPlan | None:
    """Return the plan for --ocr, Florence-2's OCR task on the first captioner that is no tagger; else None."""
    if not config.captioner.ocr:
        return None
    plan = plan_of(replace_flat(config, caption_task="<OCR>", caption_prompt=None))
    all_of_them = [OneCaptioner(one.config, TaggerConfig()) for one in plan.captioners]
    readers = [one for one in all_of_them if not one.is_tagger] or all_of_them
    return dataclasses.replace(plan, captioners=(readers[0],))

"""Wording of a training caption: stock phrases, prefix, suffix, trigger word. Strings only."""

import dataclasses
import re
from collections.abc import Sequence

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.sections.preprocess import WordingConfig
from sdxl_lora.config.trigger_word import with_trigger_word

NO_CAPTION = "no caption: the fallback is used"  # the warning for an image without a caption of its own
STOCK_PHRASES = re.compile(
    r"^(?:in (?:this|the) (?:image|picture|photo|photograph),? (?:we can see|we see|there (?:is|are)|i can see)|"
    r"(?:this|the) (?:image|picture|photo|photograph) (?:shows|depicts|features|captures|displays|is of|contains|"
    r"appears to be|is)|this is|here we can see|we can see)\s+(?=\S)",
    re.IGNORECASE,
)


def without_stock_phrase(caption: str) -> str:
    """Return the caption without a captioner's opening phrase: "The image shows a cat" -> "a cat"."""
    return STOCK_PHRASES.sub("", caption, count=1).strip()


def joined(texts: Sequence[str]) -> str:
    """Join the texts of several captioners into one caption: "1girl, solo" and "A girl." -> "1girl, solo, A girl."."""
    return ", ".join([*(text.rstrip(" .,") for text in texts[:-1]), *texts[-1:]])


def training_text(caption: str, trigger_word: str = "", prefix: str = "", suffix: str = "") -> str:
    """Join trigger word, prefix, caption and suffix: "sks, a tabby cat". A trigger word in the text is not repeated."""
    text = " ".join(part.strip() for part in (prefix, caption) if part.strip())
    if suffix.strip():
        glue = "" if not text or suffix.strip()[0] in ",.;:!?" else " "
        text += glue + suffix.strip()
    return with_trigger_word(text, trigger_word)


@dataclasses.dataclass(frozen=True)
class Wording:
    """The words around each caption; class images get no trigger word."""

    trigger_word: str
    words: WordingConfig

    def text(self, caption: str, is_class_image: bool = False) -> str:
        trigger_word = "" if is_class_image else self.trigger_word
        return training_text(caption, trigger_word, self.words.caption_prefix, self.words.caption_suffix)


def wording_of(config: PreprocessConfig) -> Wording:
    return Wording(config.trigger_word, config.captions)

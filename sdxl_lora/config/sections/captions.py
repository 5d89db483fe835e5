"""Settings for varying captions and for their length in tokens."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from sdxl_lora.config.fields import BY_CONTENT, SAME, SET, applies_when


@dataclass(frozen=True)
class CaptionConfig:
    """Captions."""

    proportion_empty_prompts: Annotated[float, Ge(0), Lt(1), SAME] = 0.0
    """Share of samples that get an empty prompt instead of their caption, for classifier-free guidance; 0.1 is
    usual."""
    shuffle_caption: Annotated[bool, SAME] = False
    """Shuffle the tags of a caption, the parts between commas, each time its image is used."""
    keep_tokens: Annotated[int, Ge(0), SAME, applies_when(shuffle_caption=SET, caption_tag_dropout_rate=SET)] = 0
    """This many tags at the start are neither moved nor dropped: 1 for a trigger word in front."""
    keep_tokens_separator: Annotated[str | None, SAME] = None
    """If a caption contains this text, e.g. "|||", all tags before it are kept instead, and the text itself is
    removed."""
    caption_separator: Annotated[str, SAME] = ","
    """Text that separates tags."""
    caption_tag_dropout_rate: Annotated[float, Ge(0), Lt(1), SAME] = 0.0
    """Share of tags that is dropped, chosen anew each time."""
    enable_wildcard: Annotated[bool, SAME] = False
    """Choose one option of {red|green|blue} in a caption each time it is used; options may be nested."""
    captions_per_line: Annotated[bool, BY_CONTENT] = False
    """Treat each line of a caption as a separate caption; each use of the image takes one of them."""
    caption_shares: Annotated[tuple[float, ...], BY_CONTENT] = ()
    """For images with several captions: how often each one is used, in order. 7 3 uses the first one in seven of ten
    samples. Default: all equally often."""
    max_caption_chunks: Annotated[int, Gt(0), SAME] = 1
    """Number of chunks of 75 tokens in which captions and sample prompts are read; 3 for up to 225 tokens."""

    @property
    def vary(self) -> bool:
        """Return whether a caption may differ between two uses of its image."""
        return replace(self, max_caption_chunks=1, captions_per_line=False, caption_shares=()) != CaptionConfig()

    @property
    def choice(self) -> str:
        """Return the rule for choosing among several captions, to compare on resume; "" for the default."""
        shares = f"caption shares {' '.join(f'{share:g}' for share in self.caption_shares)}"
        said = ["one caption a line"] * self.captions_per_line + [shares] * bool(self.caption_shares)
        return "".join(f", {words}" for words in said)

    def problems(self) -> list[str]:
        """Return a sentence for each invalid setting."""
        values = {"caption_separator": self.caption_separator, "keep_tokens_separator": self.keep_tokens_separator}
        problems = [f"{name} is empty, it must be some text" for name, value in values.items() if value == ""]
        if not all(share > 0 and math.isfinite(share) for share in self.caption_shares):
            shares = " ".join(f"{share:g}" for share in self.caption_shares)
            problems.append(f"caption_shares is {shares}, it must be numbers above 0, one for each caption")
        return problems

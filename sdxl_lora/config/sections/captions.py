"""How captions vary, and how much of them is read."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from sdxl_lora.config.fields import BY_CONTENT, SAME, SET, applies_when


@dataclass(frozen=True)
class CaptionConfig:
    """Captions."""

    proportion_empty_prompts: Annotated[float, Ge(0), Lt(1), SAME] = 0.0
    """Share of samples with the empty prompt in place of the caption, for classifier-free guidance; 0.1 is usual."""
    shuffle_caption: Annotated[bool, SAME] = False
    """Put the tags of a caption, what stands between commas, in another order each time its image is used."""
    keep_tokens: Annotated[int, Ge(0), SAME, applies_when(shuffle_caption=SET, caption_tag_dropout_rate=SET)] = 0
    """So many tags at the beginning are neither moved nor left out: 1 for a trigger word in front."""
    keep_tokens_separator: Annotated[str | None, SAME] = None
    """If this text stands in a caption, all tags before it are kept instead, and it is taken out; e.g. "|||"."""
    caption_separator: Annotated[str, SAME] = ","
    """What stands between tags."""
    caption_tag_dropout_rate: Annotated[float, Ge(0), Lt(1), SAME] = 0.0
    """Share of tags left out, others each time."""
    enable_wildcard: Annotated[bool, SAME] = False
    """Choose one of {red|green|blue} in a caption anew each time; choices may hold further ones."""
    captions_per_line: Annotated[bool, BY_CONTENT] = False
    """Each line of a caption is a caption of its own; each use of the picture takes one of them."""
    caption_shares: Annotated[tuple[float, ...], BY_CONTENT] = ()
    """Of a picture with several captions, how often each is taken, in their order: 7 3 takes the first in seven of ten
    samples. Default: all equally often."""
    max_caption_chunks: Annotated[int, Gt(0), SAME] = 1
    """Captions and sample prompts are read as this many chunks of 75 tokens; 3 for up to 225 tokens."""

    @property
    def vary(self) -> bool:
        """Return whether one caption may differ from one use of its image to the next."""
        return replace(self, max_caption_chunks=1, captions_per_line=False, caption_shares=()) != CaptionConfig()

    @property
    def choice(self) -> str:
        """Return what decides between several captions, for a resumed run to compare; "" as it is by default."""
        shares = f"caption shares {' '.join(f'{share:g}' for share in self.caption_shares)}"
        said = ["one caption a line"] * self.captions_per_line + [shares] * bool(self.caption_shares)
        return "".join(f", {words}" for words in said)

    def problems(self) -> list[str]:
        """A sentence for each setting that cannot be."""
        values = {"caption_separator": self.caption_separator, "keep_tokens_separator": self.keep_tokens_separator}
        problems = [f"{name} is empty, it must be some text" for name, value in values.items() if value == ""]
        if not all(share > 0 and math.isfinite(share) for share in self.caption_shares):
            shares = " ".join(f"{share:g}" for share in self.caption_shares)
            problems.append(f"caption_shares is {shares}, it must be numbers above 0, as many as captions")
        return problems

"""A tagger's tags: read their list, choose those of an image, and spell them for captions.

Follows SmilingWolf's taggers. Runs no model.
"""

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdxl_lora.config.sections.preprocess import TaggerConfig
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.io.text_files import MOST_TABLE_BYTES, read_text

GENERAL, CHARACTER, RATING = 0, 4, 9  # categories, as danbooru numbers them
KINDS = {GENERAL: "general", CHARACTER: "character", RATING: "rating"}
COLUMNS = ("name", "category")
# emoticons, whose underscore is a mouth; all programs around these taggers share this list
EMOTICONS = frozenset(
    ("0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^")
    + ("o_o", "u_u", "x_x", "|_|", "||_||")
)


@dataclass(frozen=True)
class TagList:
    """A tagger's tags in the order of its output, each with its category: GENERAL, CHARACTER or RATING."""

    names: tuple[str, ...]
    categories: tuple[int, ...]


def read_tag_list(path: Path) -> TagList:
    """Read the tags in a tagger's selected_tags.csv.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has a row without a tag or of an unknown category.
    """
    try:
        text = read_text(path, MOST_TABLE_BYTES)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (OSError, DataError, csv.Error) as error:
        raise ConfigError(f"the tag list {path} cannot be read ({error}): download it again") from None
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ConfigError(f"the tag list {path} has no column {' and no '.join(missing)}: download it again")
    names, categories = [], []
    for number, row in enumerate(rows, start=2):
        name, category = (row["name"] or "").strip(), (row["category"] or "").strip()
        if not name or category not in map(str, KINDS):
            raise ConfigError(
                f"the tag list {path}: row {number} is {name!r} of category {category!r}, it must be a tag "
                "of category 0 (general), 4 (character) or 9 (rating): download it again, or use a WD tagger"
            )
        names.append(name)
        categories.append(int(category))
    return TagList(tuple(names), tuple(categories))


def check_blacklist(blacklist: Sequence[str], tags: TagList) -> None:
    """Raise ConfigError if the blacklist names a tag that the tagger does not know."""
    known = set(map(plain, tags.names))
    for tag in blacklist:
        if plain(tag) not in known:
            near = difflib.get_close_matches(plain(tag), known, n=1)
            meant = f", did you mean {near[0]}?" if near else ": leave it out of the list"
            raise ConfigError(f"tag_blacklist has {tag!r}, which is not one of the tagger's {len(known)} tags{meant}")


def plain(tag: str) -> str:
    """Return a caption's tag in danbooru's spelling: "Miku \\(Vocaloid\\)" -> miku_(vocaloid)."""
    return tag.strip().lower().replace("\\(", "(").replace("\\)", ")").replace(" ", "_")


def tags_said(probabilities: np.ndarray, tags: TagList, config: TaggerConfig) -> list[str]:
    """Return an image's tags for its caption: characters, then general ones, each likeliest first, then the rating.

    Args:
        probabilities: (N,), one for each tag of the list.
    """
    left_out, categories = set(map(plain, config.tag_blacklist)), np.array(tags.categories)

    def of_kind(category: int, least: float) -> list[str]:
        likely = np.flatnonzero((categories == category) & (probabilities >= least))
        likely = likely[np.argsort(-probabilities[likely], kind="stable")]
        return [name for name in (tags.names[index] for index in likely) if plain(name) not in left_out]

    said = of_kind(CHARACTER, config.tag_character_threshold) + of_kind(GENERAL, config.tag_threshold)
    if config.tag_ratings:
        said += of_kind(RATING, 0)[:1]  # ratings exclude each other: the likeliest is always given
    return [spelled(name, config) for name in said]


def spelled(tag: str, config: TaggerConfig) -> str:
    """Return a tag in a caption's spelling: "hatsune_miku_(vocaloid)" -> "hatsune miku (vocaloid)"."""
    text = tag.replace("_", " ") if config.tag_spaces and tag not in EMOTICONS else tag
    if config.tag_escape_parentheses:
        text = text.replace("(", "\\(").replace(")", "\\)")
    return text

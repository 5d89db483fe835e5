"""Count, add, remove and replace tags and words in many captions. Strings in, strings out.

Tags and kept tags follow the trainer's rule (sdxl_lora/config/tags.py). CLIP ignores case, so two tags that differ in
case alone are the same.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sdxl_lora.config.tags import kept_and_others, tags_of
from sdxl_lora.config.trigger_word import has_trigger_word, with_trigger_word
from sdxl_lora.errors import ConfigError

ACTIONS = ("add", "add in front", "remove", "replace", "replace text")


@dataclass(frozen=True)
class Reading:
    """The training settings that define tags and kept tags in a caption."""

    separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str | None = None

    def tags(self, text: str) -> list[str]:
        kept, others = self.kept_and_others(text)
        return [*kept, *others]

    def kept_and_others(self, text: str) -> tuple[list[str], list[str]]:
        return kept_and_others(text, self.separator, self.keep_tokens, self.keep_tokens_separator)


PLAIN = Reading()


@dataclass(frozen=True)
class TagCount:
    """A tag in its most frequent spelling.

    Attributes:
        captions: number of captions that have it.
        kept: number of captions in which it stays in front.
    """

    tag: str
    captions: int
    kept: int


@dataclass(frozen=True)
class Edit:
    """A change to any number of captions.

    Attributes:
        action: one of ACTIONS.
        what: a tag, or several with the separator between them; for "replace text" any text.
        by: the replacement; "" removes, with "replace text" alone.
    """

    action: str
    what: str
    by: str = ""

    def check(self, reading: Reading, trigger_word: str) -> None:
        """Check that the edit is valid.

        Raises:
            ConfigError: it does nothing, or would remove the trigger word.
        """
        assert self.action in ACTIONS, self.action
        is_text = self.action == "replace text"
        named = self.what.strip() if is_text else reading.tags(self.what)
        if not named:
            raise ConfigError("tag is empty, it must be some text")
        if self.action == "replace" and not reading.tags(self.by):
            raise ConfigError("the replacement tag is empty: give one, or choose to remove the tag")
        if self.action in ("remove", "replace") and trigger_word and same(trigger_word) in map(same, named):
            raise ConfigError(f"{trigger_word} is the trigger word, which every caption keeps")


def same(tag: str) -> str:
    """Return the form of a tag that equal tags share."""
    return " ".join(tag.split()).casefold()


def tag_counts(texts: Iterable[str], reading: Reading) -> list[TagCount]:
    """Return every tag of the captions, the most frequent first, ties in alphabetical order."""
    spelled: dict[str, Counter[str]] = {}
    captions: Counter[str] = Counter()
    kept_in: Counter[str] = Counter()
    for text in texts:
        kept, others = reading.kept_and_others(text)
        for tag in (*kept, *others):
            spelled.setdefault(same(tag), Counter())[tag] += 1
        captions.update(set(map(same, (*kept, *others))))
        kept_in.update(set(map(same, kept)))
    found = [TagCount(spelled[tag].most_common(1)[0][0], count, kept_in[tag]) for tag, count in captions.items()]
    return sorted(found, key=lambda one: (-one.captions, one.tag))


def edited(text: str, edit: Edit, reading: Reading, trigger_word: str = "") -> str:
    """Return the caption after the edit; the rest of it stays as written.

    A caption that has the trigger word still has it afterwards.
    """
    if edit.action == "replace text":
        new = re.sub(re.escape(edit.what.strip()), lambda match: edit.by.strip(), text, flags=re.IGNORECASE)
        new = " ".join(new.split()) if new != text else text
    else:
        mark = reading.keep_tokens_separator
        parts = text.split(mark, 1) if mark else [text]
        new = (mark or "").join(edited_parts(parts, edit, reading.separator, trigger_word))
    if trigger_word and has_trigger_word(text, trigger_word):
        return with_trigger_word(new, trigger_word)
    return new


def edited_parts(parts: list[str], edit: Edit, separator: str, trigger_word: str) -> list[str]:
    """Return the edited parts of a caption.

    Args:
        parts: the caption, or its text before and after the mark that ends the kept tags.
    """
    what = list(dict.fromkeys(tags_of(edit.what, separator)))
    tags = [same(tag) for part in parts for tag in tags_of(part, separator)]
    if edit.action.startswith("add"):
        missing = [tag for tag in what if same(tag) not in tags]
        if missing and edit.action == "add in front":
            return [padded(parts[0], with_first(parts[0].strip(), missing, separator, trigger_word)), *parts[1:]]
        return [*parts[:-1], padded(parts[-1], with_last(parts[-1].strip(), missing, separator))] if missing else parts
    gone, new = set(map(same, what)), []
    by = tags_of(edit.by, separator) if edit.action == "replace" else []
    by = [tag for tag in dict.fromkeys(by) if same(tag) in gone or same(tag) not in tags]
    for part in parts:
        part, by = replaced(part, gone, by, separator)
        new.append(part)
    return new


def padded(old: str, new: str) -> str:
    """Return the new text with the whitespace that surrounds the old one."""
    core = old.strip()
    before, _, after = old.partition(core) if core else ("", "", old)
    return f"{before}{new}{after}"


def replaced(part: str, gone: set[str], by: list[str], separator: str) -> tuple[str, list[str]]:
    """Replace tags in a part of a caption by others at the first one's place; return it and those not placed."""
    pieces: list[str] = []
    for piece in part.split(separator):
        if not piece.strip() or same(piece) not in gone:
            pieces.append(piece)
        else:
            lead = piece[: len(piece) - len(piece.lstrip())]
            pieces += [f"{lead or ' ' * (number > 0)}{tag}" for number, tag in enumerate(by)]
            by = []
    new = separator.join(pieces)
    return (part if new == part else padded(part, new.strip())), by


def with_last(text: str, tags: list[str], separator: str) -> str:
    """Return the text with tags appended; a separator and a full stop at its end are dropped."""
    text = text.removesuffix(separator).rstrip()
    return glued([re.sub(r"(?<=\w)\.$", "", text), *tags], separator)


def with_first(text: str, tags: list[str], separator: str, trigger_word: str) -> str:
    """Return the text with tags in front, but behind a leading trigger word."""
    first, _, rest = text.partition(separator)
    if trigger_word and has_trigger_word(first, trigger_word):
        return glued([first.rstrip(), *tags, rest.strip()], separator)
    return glued([*tags, text], separator)


def glued(pieces: list[str], separator: str) -> str:
    glue = separator if separator.isspace() else f"{separator} "
    return glue.join(piece for piece in pieces if piece)

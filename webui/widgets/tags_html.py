"""The tags of a dataset and what a change of many captions would do, as HTML."""

import difflib
import re
from html import escape

from sdxl_lora.config.trigger_word import has_trigger_word
from webui.datasets.bulk import Plan
from webui.datasets.tags import Reading, TagCount
from webui.locale.i18n import say

MOST_TAGS, MOST_CHANGES = 150, 40  # shown at once


def tags_html(counts: list[TagCount], reading: Reading, trigger_word: str) -> str:
    """Each tag as a button with its count; a press shows the images that have it (dataset.js)."""
    if not counts:
        return f'<p class="empty">{escape(say("No tags yet: no image has a caption."))}</p>'
    buttons = [tag_html(one, trigger_word) for one in counts]
    more = ""
    if len(buttons) > MOST_TAGS:
        words = say("{count} more tags", count=len(buttons) - MOST_TAGS)
        more = (
            f"<details><summary>{escape(words)}</summary>"
            f'<div class="tags">{"".join(buttons[MOST_TAGS:])}</div></details>'
        )
    return f'{kept_html(reading)}<div class="tags">{"".join(buttons[:MOST_TAGS])}</div>{more}'


def kept_html(reading: Reading) -> str:
    """Return what training keeps in front, as its form says."""
    words = say("Training keeps no tags in front (Keep tokens under 3 · Train).")
    if reading.keep_tokens:
        words = say("Tags that training keeps in front of each caption: {count}.", count=reading.keep_tokens)
    if reading.keep_tokens_separator:
        mark = say("What stands before {mark} stays in front.", mark=reading.keep_tokens_separator)
        words = f"{words} {mark}" if reading.keep_tokens else mark
    return f'<p class="hint">{escape(words)}</p>'


def tag_html(one: TagCount, trigger_word: str) -> str:
    marks = []
    if trigger_word and has_trigger_word(one.tag, trigger_word):
        marks.append(say("trigger word"))
    if one.kept == one.captions:
        marks.append(say("kept"))
    elif one.kept:
        marks.append(say("kept in {count}", count=one.kept))
    small = f"<small>{escape(', '.join(marks))}</small>" if marks else ""
    words = say("Show the images with {tag}", tag=one.tag)
    return (
        f'<button type="button" class="tag{" marked" * bool(marks)}" data-tag="{escape(one.tag)}" '
        f'title="{escape(words)}">{escape(one.tag)} <b>{one.captions}</b>{small}</button>'
    )


def plan_html(plan: Plan) -> str:
    """How many captions would change, and the first of them as they are and as they would be."""
    counts = {"changed": len(plan.changes), "chosen": plan.chosen}
    if not plan.changes:
        words = say("None of the {chosen} captions would change.", chosen=plan.chosen)
        return f'<p class="ending partly" role="status">{escape(words)}</p>'
    words = say("{changed} of {chosen} captions would change; nothing has been done yet.", **counts)
    rows = "".join(
        f"<li><b>{escape(change.source)}</b> {difference(change.before, change.after)}</li>"
        for change in plan.changes[:MOST_CHANGES]
    )
    if len(plan.changes) > MOST_CHANGES:
        more = say("and {count} more", count=len(plan.changes) - MOST_CHANGES)
        rows += f"<li>{escape(more)}</li>"
    return f'<div role="status"><p class="ending partly">{escape(words)}</p><ul class="changes">{rows}</ul></div>'


def difference(before: str, after: str) -> str:
    """The caption with what goes struck out and what comes marked."""
    old, new = (re.findall(r"\s+|,|[^\s,]+", text) for text in (before, after))
    parts = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, comes = escape("".join(old[i:j])), escape("".join(new[k:m]))
        parts.append(gone if kind == "equal" else f"{f'<del>{gone}</del>' * (j > i)}{f'<ins>{comes}</ins>' * (m > k)}")
    return "".join(parts)

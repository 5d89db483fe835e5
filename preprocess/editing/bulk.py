"""Bulk changes of captions, planned and then applied, and the removal of an image. No gradio."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from preprocess.editing.history import Place, change_rows, keep, lay_aside, placed, write_rows
from preprocess.editing.prepared import all_rows, held, read_dataset
from preprocess.editing.row_texts import text_of, with_text
from preprocess.editing.search import Search
from preprocess.editing.tags import Edit, Reading, edited
from sdxl_lora.errors import ConfigError


@dataclass(frozen=True)
class Change:
    """One row's caption before and after a change."""

    at: Place
    source: str
    before: str
    after: str


@dataclass(frozen=True)
class Plan:
    """The changes that an edit would make.

    Attributes:
        chosen: number of images selected; some of them may stay as they are.
    """

    chosen: int
    changes: list[Change]

    @property
    def digest(self) -> str:
        """Return a digest that is equal for equal plans."""
        facts = [(one.at, one.before, one.after) for one in self.changes]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


def planned(folder: Path, edit: Edit, search: Search | None, reading: Reading) -> Plan:
    """Plan a change without applying it.

    Args:
        search: selects the images; None for all of them.
    Raises:
        ConfigError: the edit is invalid; the folder is no dataset.
    """
    dataset = read_dataset(folder)
    edit.check(reading, dataset.trigger_word)
    images = dataset.images if search is None else search.images(dataset, reading)
    rows = {place: row for place, row in placed(all_rows(folder)) if place is not None}
    changes = []
    for image in images:
        row = rows.get((image.file_name, image.place))
        if row is not None and (new := edited_row(row, edit, reading, dataset.trigger_word)) != row:
            changes.append(Change((image.file_name, image.place), image.source, shown(row), shown(new)))
    return Plan(len(images), changes)


def edited_row(row: dict, edit: Edit, reading: Reading, trigger_word: str) -> dict:
    """Return the row with all of its captions edited; tags are added to the first caption alone."""
    trigger_word = "" if row.get("is_class_image") else trigger_word
    new = with_text(row, edited(text_of(row), edit, reading, trigger_word))
    several = new.get("captions")
    if isinstance(several, list) and not edit.action.startswith("add"):
        new = {**new, "captions": [edited(str(one), edit, reading, trigger_word) for one in several]}
    return new


def shown(row: dict) -> str:
    """Return all captions of a row as one line to display."""
    several = row.get("captions")
    texts = [str(one) for one in several] if isinstance(several, list) and several else [text_of(row)]
    return " | ".join(texts)


def change_all(folder: Path, edit: Edit, search: Search | None, reading: Reading, digest: str) -> int:
    """Apply a plan, keep the old rows for undo, and return the number of changed captions.

    Args:
        digest: of the plan that the person has seen.
    Raises:
        ConfigError: captions have changed, so the plan would differ; or the dataset is being prepared.
    """
    with held(folder):
        plan = planned(folder, edit, search, reading)
        if plan.digest != digest:
            raise ConfigError("captions have changed since you looked: show the change again")
        trigger_word = read_dataset(folder).trigger_word
        chosen = {change.at for change in plan.changes}

        def changed(place: Place, row: dict) -> dict:
            return edited_row(row, edit, reading, trigger_word) if place in chosen else row

        return change_rows(folder, changed)


def take_out(folder: Path, at: Place, seen: str) -> None:
    """Remove one row from the dataset, and set its image aside if no other row uses it. Can be undone.

    Args:
        seen: the caption that the person saw. It identifies the row among several of one file, since rows before it may
            have been removed.
    Raises:
        ConfigError: no row has that caption, or several have and none is at `at`; the dataset is being prepared.
        DiskError: its image cannot be moved.
    """
    with held(folder):
        rows = all_rows(folder)
        alike = {place: index for index, (place, row) in enumerate(placed(rows)) if place and place[0] == at[0]}
        alike = {place: index for place, index in alike.items() if text_of(rows[index]).split() == seen.split()}
        if at not in alike and len(alike) != 1:
            raise ConfigError(f"{at[0]} was changed or removed in the meantime: load it again")
        index = alike[at] if at in alike else next(iter(alike.values()))
        row, rest = rows[index], [*rows[:index], *rows[index + 1 :]]
        named = {str(other.get(key)) for other in rest for key in ("file_name", "mask_file_name")}
        files = [] if row["file_name"] in named else [row["file_name"]]
        keep(folder, {"taken_out": row, "index": index, "files": files})
        write_rows(folder, rows, rest)
        for name in files:
            lay_aside(folder, name)

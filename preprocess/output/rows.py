"""Rows of metadata.jsonl with their facts, and the outcome of a run, for the dataset and its report."""

import dataclasses

from preprocess.captions.caption_all import Entry
from sdxl_lora.folders.found import Found

EDITED = "metadata.jsonl, edited by hand"


@dataclasses.dataclass(slots=True)
class Row:
    """A row of metadata.jsonl, its crop, and the author of its text."""

    entry: Entry
    columns: dict
    text_from: str

    @property
    def is_edited(self) -> bool:
        return self.text_from == EDITED


@dataclasses.dataclass
class Built:
    """The outcome of a run, for the report."""

    found: Found
    left_out: dict[str, str]
    rows: list[Row] = dataclasses.field(default_factory=list)
    new_crops: int = 0
    new_captions: int = 0
    deleted: list[str] = dataclasses.field(default_factory=list)  # sources whose rows a person deleted
    gone: list[str] = dataclasses.field(default_factory=list)  # sources of earlier rows that no longer exist

"""State of earlier runs and of a person's edits in metadata.jsonl."""

import json
from pathlib import Path

from preprocess.jobs.state import Written, is_list_of_texts, words_of_row
from sdxl_lora.errors import ConfigError
from sdxl_lora.folders.mask_files import is_painted
from sdxl_lora.io.text_files import read_jsonl

OUR_COLUMNS = {
    "file_name", "mask_file_name", "text", "original_size", "crop_top_left", "source", "sha256", "is_class_image",
}  # fmt: skip
OUR_CAPTION = "caption_is_ours"  # marks a row in removed.jsonl that is kept for its painted mask alone


class Memory:
    """Rows of earlier runs, by source and by content.

    Raises:
        DataError: metadata.jsonl has a line that is not JSON.
        ConfigError: preprocess did not write it.
    """

    def __init__(self, output: Path):
        self.output, self.written = output, Written(output / ".preprocess")
        removed, path = output / ".preprocess" / "removed.jsonl", output / "metadata.jsonl"
        self.damaged: dict[str, str] = {}  # our damaged files, and the consequences
        if self.written.is_damaged:
            self.damaged[".preprocess/written.json"] = (
                "was damaged and is written again: texts in metadata.jsonl count as edited by hand, and lines that "
                "were deleted there come back"
            )
        self.removed = self.read_removed(removed) if removed.exists() else []
        self.exists = path.exists()
        self.rows = read_jsonl(path) if self.exists else []
        for number, row in enumerate(self.rows, start=1):
            if not all(isinstance(row.get(key), str) for key in ("file_name", "text", "source", "sha256")):
                raise ConfigError(
                    f"{path}: row {number} lacks one of file_name, text, source, sha256; preprocess did not write it: "
                    "choose another output_dir"
                )
        self.by_source: dict[str, list[dict]] = {}
        self.by_content: dict[str, list[dict]] = {}
        for row in [*self.removed, *self.rows]:
            self.by_content.setdefault(row["sha256"], []).append(row)
        for row in self.rows:
            self.by_source.setdefault(row["source"], []).append(row)

    def read_removed(self, path: Path) -> list[dict]:
        """Return the rows that can be read; a damaged file is also kept under another name."""
        rows, keys = [], ("file_name", "text", "source", "sha256")
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError:
                row = {}
            if row is not None and isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys):
                rows.append(row)
            elif row is not None:
                self.damaged[".preprocess/removed.jsonl"] = (
                    "was damaged: captions of images removed from the source folder may be lost; it is kept as "
                    "removed.damaged.jsonl"
                )
        if ".preprocess/removed.jsonl" in self.damaged:
            path.with_suffix(".damaged.jsonl").write_bytes(path.read_bytes())
        return rows

    def files(self) -> set[str]:
        """Return every image file that the rows name."""
        return {row[key] for row in self.rows for key in ("file_name", "mask_file_name") if row.get(key)}

    def deleted_by_hand(self, source: str) -> bool:
        """Return whether a finished run wrote rows for this image and a person deleted them from metadata.jsonl."""
        return self.exists and source in self.written.published and source not in self.by_source

    def row_of(self, source: str, sha256: str, number: int) -> dict | None:
        """Return the earlier row of a crop: of its source, else of an equal image under another name."""
        rows = self.by_source.get(source) or self.by_content.get(sha256, [])
        return rows[number] if number < len(rows) else None

    def edited_text(self, source: str, sha256: str, number: int) -> str | None:
        """Return the text that a person gave a crop in metadata.jsonl; None if it is as we wrote it."""
        row = self.row_of(source, sha256, number)
        return row["text"] if row and not self.is_ours(row) else None

    def edited_captions(self, source: str, sha256: str, number: int) -> list[str]:
        """Return the captions of a crop that a person edited, in a list that includes the row's text."""
        row = self.row_of(source, sha256, number) or {}
        captions = row.get("captions")
        if not captions or not is_list_of_texts(captions):
            return [row["text"]]
        return captions if row["text"] in captions else [row["text"], *captions[1:]]

    def painted_mask(self, source: str, sha256: str, number: int) -> tuple[str, dict] | None:
        """Return the mask that a person painted in an earlier row, and that row; None if there is none."""
        row = self.row_of(source, sha256, number) or {}
        mask = row.get("mask_file_name")
        return (mask, row) if isinstance(mask, str) and is_painted(mask) else None

    def has_handwork(self, row: dict) -> bool:
        """Return whether a person gave the row its caption or its mask."""
        return not self.is_ours(row) or is_painted(str(row.get("mask_file_name")))

    def kept(self, row: dict) -> dict:
        """Return the row to store for an image that is gone; an unedited caption is marked as ours."""
        return {**row, OUR_CAPTION: True} if self.is_ours(row) else row

    def is_ours(self, row: dict) -> bool:
        return bool(row.get(OUR_CAPTION)) or self.written.is_ours(row["source"], words_of_row(row))

    def extra_columns(self) -> list[str]:
        """Return columns that a person added, in their order."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key not in OUR_COLUMNS))

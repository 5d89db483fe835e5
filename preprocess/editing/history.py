"""History of a person's changes to a dataset, undone one by one from the last.

.preprocess/page_undo.jsonl holds the last MOST_KEPT changes, one a line. Files that no row names any more lie in
.preprocess/taken_out until they are put back. No gradio.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from preprocess.editing.prepared import all_rows, held, own_file
from preprocess.jobs.state import jsonl, write_whole
from preprocess.output.publish import aside
from sdxl_lora.errors import ConfigError, DiskError
from sdxl_lora.io.file_system import replace

MOST_KEPT = 20
Place = tuple[str, int]  # a file's name, and the index among its rows


def placed(rows: list[dict]) -> Iterator[tuple[Place | None, dict]]:
    """Yield each row with its place; None for rows without an image."""
    seen: Counter[str] = Counter()
    for row in rows:
        name = row.get("file_name")
        if isinstance(name, str):
            yield (name, seen[name]), row
            seen[name] += 1
        else:
            yield None, row


def move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(source, target)
    except OSError as error:
        raise DiskError(f"cannot move {source} to {target}: {error.strerror}") from None


def write_rows(folder: Path, before: list[dict], after: list[dict]) -> None:
    """Write the dataset's rows; set aside masks that no row names any more, and put back those named again."""
    after = without_empty_masks(after)
    write_whole(folder / "metadata.jsonl", jsonl(after))
    old, new = ({str(row["mask_file_name"]) for row in rows if row.get("mask_file_name")} for rows in (before, after))
    for name in old - new - {str(row.get("file_name")) for row in after}:
        lay_aside(folder, name)
    for name in new - old:
        put_back(folder, name)


def lay_aside(folder: Path, name: str) -> None:
    if (path := own_file(folder, name)) is not None:
        move(path, aside(folder, name))


def put_back(folder: Path, name: str) -> None:
    if aside(folder, name).is_file() and (folder / name).resolve().is_relative_to(folder.resolve()):
        move(aside(folder, name), folder / name)


def kept_changes(folder: Path) -> list[dict]:
    """Return the changes that can be undone, the last one last; unreadable lines give none."""
    try:
        lines = (folder / ".preprocess" / "page_undo.jsonl").read_text(encoding="utf-8").split("\n")
        changes = [json.loads(line) for line in lines if line]  # a caption may hold other line ends
    except (OSError, ValueError):
        return []
    return [change for change in changes if isinstance(change, dict)]


def keep(folder: Path, change: dict) -> None:
    changes = [*kept_changes(folder), change][-MOST_KEPT:]
    write_whole(folder / ".preprocess" / "page_undo.jsonl", jsonl(changes))


def without_empty_masks(rows: list[dict]) -> list[dict]:
    """Return the rows without the mask column if none has a mask: datasets cannot infer masks from nulls alone."""
    if any(row.get("mask_file_name") for row in rows):
        return rows
    return [{key: value for key, value in row.items() if key != "mask_file_name"} for row in rows]


def change_rows(folder: Path, change: Callable[[Place, dict], dict]) -> int:
    """Apply `change` to every image's row, keep the old rows for undo, and return the number changed.

    The caller holds the dataset.
    """
    rows = all_rows(folder)
    new = [change(place, row) if place else row for place, row in placed(rows)]
    pairs = zip(placed(rows), new, strict=True)
    changed = [{"at": place, "before": row, "after": other} for (place, row), other in pairs if other != row]
    if changed:
        keep(folder, {"changed": changed})
        write_rows(folder, rows, new)
    return len(changed)


def put_back_columns(row: dict, before: dict, after: dict) -> dict | None:
    """Return the row with a change undone in its columns; None if one of them has changed again since."""
    keys = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    if any(row.get(key) != after.get(key) for key in keys):
        return None
    values = {key: value for key, value in row.items() if key not in keys}
    values |= {key: before[key] for key in keys if key in before}
    return {key: values[key] for key in [*before, *row] if key in values}  # in their old order, to the byte


def undo(folder: Path) -> tuple[int, int]:
    """Undo the last change in the columns that it touched.

    Returns:
        the number of rows restored, and of rows kept because they have changed again since.
    Raises:
        ConfigError: there is nothing to undo; the dataset is being prepared.
    """
    with held(folder):
        changes = kept_changes(folder)
        if not changes:
            raise ConfigError("there is nothing to undo")
        last, rows = changes[-1], all_rows(folder)
        if "taken_out" in last:
            at = min(int(last["index"]), len(rows))
            new, done = [*rows[:at], last["taken_out"], *rows[at:]], 1
            for name in last["files"]:
                put_back(folder, name)
        else:
            before = {tuple(one["at"]): one for one in last["changed"]}
            new, done = [], 0
            for place, row in placed(rows):
                was = before.get(place) if place else None
                old = put_back_columns(row, was["before"], was["after"]) if was else None
                new.append(row if old is None else old)
                done += old is not None
        write_rows(folder, rows, new)
        write_whole(folder / ".preprocess" / "page_undo.jsonl", jsonl(itertools.islice(changes, len(changes) - 1)))
    return done, len(last.get("changed", [None])) - done

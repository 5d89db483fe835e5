"""Build a dataset from a folder of images. This file shows all steps in their order.

Every step skips what an earlier run has done, and nothing is published before all of it is done. Opens no image and
runs no model itself: see images/prepare.py and captions/caption_all.py.
"""

from collections.abc import Callable
from pathlib import Path

from preprocess.captions.caption_all import Entry, caption_all, warn_of_text
from preprocess.captions.caption_plan import CaptionPlan, plan_of, reader_of
from preprocess.captions.caption_text import Wording, wording_of
from preprocess.images.mask_files import size_of
from preprocess.images.prepare import Job, Prepared, Refused
from preprocess.images.quality import duplicates, image_problems
from preprocess.images.recipe import recipe_of
from preprocess.images.workers import Result, prepare_all, workers_of
from preprocess.jobs.processes import Team
from preprocess.jobs.shard import Part
from preprocess.jobs.state import (
    Shelf,
    is_list_of_texts,
    jsonl,
    keep_before_recaption,
    words_of_row,
    write_whole,
)
from preprocess.output.card import dataset_card
from preprocess.output.publish import aside, publish
from preprocess.output.rows import EDITED, Built, Row
from preprocess.sources.folders import no_usable
from preprocess.sources.previous_run import Memory
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.errors import DataError
from sdxl_lora.folders.caption_tables import CAPTIONS
from sdxl_lora.folders.found import Found, Source


def build(
    found: Found,
    config: PreprocessConfig,
    team: Team,
    part: Part | None = None,
    on_built: Callable[[Built], None] = lambda built: None,
) -> Built:
    """Prepare and caption what is new, then publish the dataset.

    Args:
        part: prepare this part of the images only, and publish nothing.
        on_built: called with the outcome before it is published or refused; writes the report.
    Raises:
        ConfigError: the captioner cannot be loaded; the output folder is not ours.
        DataError: no usable image; with `strict`, any image left out.
        OSError: a disk error.
    """
    output, plan, reader = Path(config.output_dir), plan_of(config), reader_of(config)
    memory = Memory(output)
    built = Built(found, dict(found.left_out))
    for name, message in memory.damaged.items():
        found.warn(name, message)
    sources = sources_to_do(found, memory, built, config.job.restore_deleted)
    sources = part.share(sources) if part else sources
    if plan.captioners and any(source.caption is None for source in sources):
        plan.check()
    if reader:
        reader.check()
    entries = prepared_entries(sources, config, team, built)
    failed, built.new_captions = caption_all(entries, plan, memory, output, team)
    built.left_out |= {refused.source: refused.reason for refused in failed}
    entries = [entry for entry in entries if entry.source.name not in built.left_out]
    if reader:
        warn_of_text(entries, reader, output, team)
    if part:
        team.wait()
        return built
    add_problems(entries)
    built.rows = rows_of(entries, plan, wording_of(config), memory)
    built.gone = sorted({row["source"] for row in memory.rows} - {row.columns["source"] for row in built.rows})

    if team.rank == 0:
        on_built(built)
    if not built.rows:
        raise DataError(no_usable("the source folder", built.left_out))
    if config.job.strict and built.left_out:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in built.left_out.items())
        raise DataError(f"--strict: {len(built.left_out)} left out, nothing was published\n{lines}")
    if team.rank == 0:
        publish_all(config, built, plan, memory)
    team.wait()
    return built


def sources_to_do(found: Found, memory: Memory, built: Built, restore_deleted: bool) -> list[Source]:
    """Return all sources but those whose row a person deleted from metadata.jsonl."""
    sources = []
    for source in found.sources:
        if memory.deleted_by_hand(source.name) and not restore_deleted:
            built.deleted.append(source.name)
            built.left_out[source.name] = "its line was deleted from metadata.jsonl; --restore_deleted brings it back"
        else:
            sources.append(source)
    return sources


def deleted_unseen(config: PreprocessConfig, memory: Memory) -> list[str]:
    """Return the images named by `leave_out` whose rows a person had deleted before: they stay deleted."""
    if config.job.restore_deleted:
        return []
    return [name for name in config.job.leave_out if memory.deleted_by_hand(name)]


def prepared_entries(sources: list[Source], config: PreprocessConfig, team: Team, built: Built) -> list[Entry]:
    """Return the crops of all sources in the order of the sources, whichever process made them."""
    recipe, output, num_workers = recipe_of(config), Path(config.output_dir), workers_of(config.job, team.local_world)
    jobs = [Job(source.path, source.name, source.mask, recipe, output) for source in sources]
    results: dict[str, Result] = {}
    for part in team.gather([prepare_all(team.share(jobs), num_workers)]):
        results |= part
    entries = []
    for source in sources:
        result = results[source.name]
        if isinstance(result, Refused):
            built.left_out[source.name] = result.reason
        else:
            entries += [Entry(source, crop, warnings=[*crop.warnings]) for crop in result]
    built.new_crops = sum(entry.prepared.is_new for entry in entries)
    return entries


def add_problems(entries: list[Entry]) -> None:
    """Warn of duplicates, blur, low contrast and extreme shapes."""
    first = list({entry.source.name: entry for entry in reversed(entries)}.values())[::-1]
    said = duplicates(
        [entry.source.name for entry in first],
        [entry.prepared.sha256 for entry in first],
        [entry.prepared.measures["phash"] for entry in first],
    )
    for entry in first:
        entry.warnings += image_problems(entry.prepared.measures, entry.prepared.cut_off)
        entry.warnings += [said[entry.source.name]] if entry.source.name in said else []


def rows_of(entries: list[Entry], plan: CaptionPlan, wording: Wording, memory: Memory) -> list[Row]:
    """Return the rows of metadata.jsonl, one for each crop and repeat, with a person's edits kept."""
    any_class = any(entry.source.is_class_image for entry in entries)
    extra = memory.extra_columns()
    rows = []
    for entry in entries:
        source, crop = entry.source, entry.prepared
        for repeat in range(source.repeats):
            number = crop.crop_index * source.repeats + repeat
            edited = None if plan.recaption else memory.edited_text(source.name, crop.sha256, number)
            if edited is None:
                written = [entry.caption, *entry.more_captions]
                captions = [wording.text(caption, source.is_class_image) for caption in written]
            else:
                captions = memory.edited_captions(source.name, crop.sha256, number)
            columns: dict[str, object] = {
                "file_name": crop.file_name,
                "text": captions[0] if edited is None else edited,
                "original_size": crop.original_size,
                "crop_top_left": crop.crop_top_left,
                "source": source.name,
                "sha256": crop.sha256,
            }
            if mask := mask_of(entry, number, memory):
                columns["mask_file_name"] = mask
            if any_class:
                columns["is_class_image"] = source.is_class_image
            old = memory.row_of(source.name, crop.sha256, number) or {}
            columns |= {key: old.get(key) for key in extra}
            columns |= {CAPTIONS: captions if len(captions) > 1 else None} if is_several(columns, captions) else {}
            rows.append(Row(entry, columns, entry.caption_from if edited is None else EDITED))
    for column in (CAPTIONS, "mask_file_name"):
        of_all(column, rows)
    return rows


def of_all(column: str, rows: list[Row]) -> None:
    """Give the column to all rows, or to none if no row has a value."""
    has_some = any(row.columns.get(column) for row in rows)
    for row in rows:
        if has_some:
            row.columns.setdefault(column, None)
        elif row.columns.get(column, "") is None:
            del row.columns[column]


def mask_of(entry: Entry, number: int, memory: Memory) -> str | None:
    """Return the file of a crop's mask: one that a person painted over this very crop, else preprocess' own."""
    crop = entry.prepared
    mask, old = memory.painted_mask(entry.source.name, crop.sha256, number) or ("", {})
    file = next((path for path in (memory.output / mask, aside(memory.output, mask)) if path.is_file()), None)
    if file is not None and (old["file_name"] == crop.file_name or is_of_same_part(file, old, crop)):
        return mask
    if mask:
        why = "is for another crop, so it is kept but not used: paint it again" if file else "no longer exists"
        note = f"its mask painted by hand, {mask}, {why}"
        entry.warnings += [note] if note not in entry.warnings else []
    return crop.mask_file_name


def is_of_same_part(mask: Path, old: dict, crop: Prepared) -> bool:
    """Return whether a mask of an earlier row covers the same part of the same image as this crop.

    The file names may differ: an image may have been renamed.
    """
    facts = ("sha256", "original_size", "crop_top_left")
    return all(old.get(name) == getattr(crop, name) for name in facts) and size_of(mask) == tuple(crop.bucket)


def is_several(columns: dict, captions: list[str]) -> bool:
    """Return whether a row has several captions now, or had a list of them in an earlier run."""
    return len(captions) > 1 or is_list_of_texts(columns.get(CAPTIONS))


def publish_all(config: PreprocessConfig, built: Built, plan: CaptionPlan, memory: Memory) -> None:
    """Publish the rows, and remove what only earlier runs needed."""
    output = Path(config.output_dir)
    folder = output / ".preprocess"
    rows = [row.columns for row in built.rows]
    gone = [memory.kept(row) for row in memory.rows if row["source"] in built.gone and memory.has_handwork(row)]
    back = {row["source"] for row in rows}
    removed = [row for row in memory.removed if row["source"] not in back]
    write_whole(folder / "removed.jsonl", jsonl([*removed, *gone]))
    if plan.recaption and memory.rows:
        keep_before_recaption(folder, memory.rows)
    ours = [(row.columns["source"], None if row.is_edited else words_of_row(row.columns)) for row in built.rows]
    ours += [(source, None) for source in [*built.deleted, *deleted_unseen(config, memory)]]
    memory.written.announce(ours, memory.files())
    card = dataset_card(rows, config.trigger_word, output.resolve().name, config.captioner.models)
    write_whole(output / "README.md", card)
    publish(output, folder / "images", rows, memory.written.old_files)
    memory.written.confirm(ours)
    keys = {row.entry.prepared.key for row in built.rows}
    for shelf in ("pictures", "thumbnails"):
        Shelf(folder / shelf).keep_only(keys)

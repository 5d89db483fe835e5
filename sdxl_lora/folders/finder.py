"""Find the images in a folder with their captions and masks, for preprocess and the trainer.

Every file is either used or reported with the reason. Decodes no image and writes nothing.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.folders.caption_files import CAPTION_SUFFIXES, ByName, why_no_file
from sdxl_lora.folders.caption_tables import METADATA, may_be_table
from sdxl_lora.folders.folder_names import FolderName, read_folder_name, why_passed_over
from sdxl_lora.folders.found import Found, Source
from sdxl_lora.folders.given_captions import add_captions, is_caption_file, read_tables
from sdxl_lora.folders.mask_files import images_masked_by, is_condition, is_mask_folder, masked_image
from sdxl_lora.images.decode import SUFFIXES, UNSUPPORTED_SUFFIXES, is_image_name, looks_like_image

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2", ".zst")
OF_A_RUN = ("events.jsonl", "status.json")  # written by every training, see run/session.py
OF_A_DATASET = ("README.md", "preprocess_report.json", "report.html", "parquet", ".preprocess")
OF_SAMPLES = re.compile(r"step-\d{6}-prompt-\d+-image-\d+\.png")  # see sampling/generate.py
MOST_ROWS = 1_000_000  # images times repeats; more are surely unintended


def find_images(folder: Path, masks: bool = False) -> Found:
    """Find every image below `folder`, in order of folders, each with its caption and, with `masks`, its mask.

    Raises:
        ConfigError: there is no such folder.
        DataError: captions cannot be read or belong to two images, or repeats are excessive; reports all problems at
            once.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    found = Found(folder)
    directories = dict(walk(found))
    tables = read_tables(found, directories)
    masked = {mask: image for table in tables for mask, image in table.masks().items()}
    add_images(found, directories, masked, masks)
    add_captions(found, directories, tables)
    check_repeats(found)
    if found.problems:
        raise DataError("\n".join(found.problems))
    return found


def walk(found: Found) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders that may hold training images and their files, in a fixed order, each once, following links.

    All other folders are reported.
    """

    def unreadable(error: OSError) -> None:
        found.left_out[found.shown(Path(error.filename)) + "/"] = f"cannot be read ({error.strerror})"

    seen: set[str] = set()
    for where, folders, files in os.walk(found.folder, onerror=unreadable, followlinks=True):
        directory, real = Path(where), os.path.realpath(where)
        if real in seen:
            found.other_files[found.shown(directory) + "/"] = "a link to a folder that is used already"
            folders.clear()
            continue
        seen.add(real)
        is_run, is_dataset = all(name in files for name in OF_A_RUN), ".preprocess" in folders and METADATA[0] in files
        if is_run and directory != found.folder:
            found.other_files[found.shown(directory) + "/"] = "the folder of a training, with its samples"
            folders.clear()
            continue
        for name in sorted(folders):
            if is_run and (name == "samples" or name.startswith("checkpoint-")):
                found.other_files[f"{name}/"] = "of a training that wrote into this folder"
            elif is_dataset and name in OF_A_DATASET:
                pass  # reports of preprocess, and files for its next run
            elif reason := why_passed_over(name):
                found.other_files[found.shown(directory / name) + "/"] = reason
            elif is_image_name(name):
                reason = "a directory, not a file: rename it to use the images inside"
                found.left_out[found.shown(directory / name) + "/"] = reason
            else:
                if is_caption_file(name) or may_be_table(name):
                    found.warn(found.shown(directory / name) + "/", "a directory, not a file of captions")
                continue
            folders.remove(name)
        folders.sort()
        ours = {*(OF_A_RUN if is_run else ()), *(OF_A_DATASET if is_dataset else ())}
        yield directory, [name for name in sorted(files) if name not in ours]


def add_images(found: Found, directories: dict[Path, list[str]], masked: dict[Path, Path], masks: bool) -> None:
    """Add every image to `found`, with its mask if `masks`, and report all other files.

    Args:
        masked: the image of each mask that metadata names.
    """
    usable = {directory: usable_images(found, directory, files) for directory, files in directories.items()}
    named = [path for paths in usable.values() for path in paths if path in masked]
    usable = {directory: [path for path in paths if path not in masked] for directory, paths in usable.items()}
    for_masks = {directory: folder_masked_by(directory, found.folder) for directory in directories}
    sources: dict[Path, list[Source]] = {}
    pairs: list[tuple[Path, list[Source]]] = []
    for directory in (directory for directory in directories if for_masks[directory] is None):
        names = ByName((path.name for path in usable[directory]), str)
        owner = {path: masked_image(path.name, names) for path in usable[directory]}
        sources[directory] = [source_of(found, path) for path in usable[directory] if owner[path] is None]
        of_name = ByName(sources[directory], name_of)
        pairs += [(path, of_name.get(name)) for path, name in owner.items() if name is not None]
    for directory in directories:
        if (of_images := for_masks[directory]) is None:
            continue
        of_name = ByName(sources.get(of_images, []), name_of)
        owners = {path: images_masked_by(path.name, of_name) for path in usable[directory]}
        sources[directory] = [source_of(found, path) for path in owners if not (owners[path] or masks)]
        pairs += [(path, of_mask) for path, of_mask in owners.items() if of_mask or masks]
    found.sources = [source for directory in directories for source in sources[directory]]
    of_path = {source.path: source for source in found.sources}
    pairs += [(path, [of_path[masked[path]]] if masked[path] in of_path else []) for path in named]
    for path, masked_here in pairs:
        give_mask(found, path, masked_here, masks)
    for source in found.sources:
        if masks and source.mask is None:
            found.warn(source.name, "no mask: it counts everywhere")


def give_mask(found: Found, mask: Path, owners: list[Source], masks: bool) -> None:
    without = [source for source in owners if source.mask is None]
    if masks and without:
        for source in without:
            source.mask = mask
        return
    whose = " and ".join(source.name for source in owners)
    if not owners:
        reason = "a mask, but no image has this name"
    elif masks and (first := owners[0].mask):
        reason = f"another mask of {whose}, which has {found.shown(first)}"
    else:
        reason = f"a mask of {whose}: `python -m preprocess --masks folder` uses it"
    found.other_files[found.shown(mask)] = reason


def name_of(thing: Path | Source) -> str:
    return thing.path.name if isinstance(thing, Source) else thing.name


def folder_masked_by(directory: Path, folder: Path) -> Path | None:
    """Return the folder of the images whose masks lie in `directory`: a/b for a/masks/b; None if it holds no masks."""
    for above in (directory, *directory.parents):
        if above == folder:
            return None
        if is_mask_folder(above):
            return above.parent / directory.relative_to(above)
    return None


def source_of(found: Found, path: Path) -> Source:
    asked = folder_name(path.parent, found.folder)
    if asked.note:
        found.notes[found.shown(path.parent) + "/"] = asked.note
    if asked.problem and f"{path.parent} {asked.problem}" not in found.problems:
        found.problems.append(f"{path.parent} {asked.problem}")
    return Source(path, found.shown(path), repeats=asked.repeats, class_words=asked.words)


def folder_name(directory: Path, folder: Path) -> FolderName:
    return read_folder_name(directory.name) if directory != folder else FolderName()


def usable_images(found: Found, directory: Path, files: list[str]) -> list[Path]:
    """Return the images among a folder's files, by their endings or, without one, by their content.

    Other files that are not captions are reported.
    """
    images = []
    for file in files:
        path, suffix = directory / file, os.path.splitext(file)[1].lower()
        name = found.shown(path)
        if is_image_name(file) or (not suffix and not file.startswith(".") and looks_like_image(path)):
            if reason := why_left_out(path, folder_name(directory, found.folder)):
                found.left_out[name] = reason
            elif OF_SAMPLES.fullmatch(file):
                found.other_files[name] = "a sample that a training drew"
            elif is_condition(file):
                found.other_files[name] = "a conditioning image, which this training does not use"
            else:
                images.append(path)
        elif file.startswith(".") and suffix not in UNSUPPORTED_SUFFIXES:
            found.other_files[name] = "a hidden file"
        elif suffix in CAPTION_SUFFIXES or may_be_table(file):
            pass  # read later
        elif looks_like_image(path):  # not used: a.jpg.bak and a.jpg_original are copies of an image
            found.left_out[name] = f"an image with the ending {suffix}; rename it to use it: {', '.join(SUFFIXES)}"
        elif suffix in UNSUPPORTED_SUFFIXES:
            found.left_out[name] = f"unsupported format {suffix[1:].upper()}; use {', '.join(SUFFIXES)}"
        else:
            found.other_files[name] = "an archive: unpack it" if suffix in ARCHIVES else "not an image"
    return images


def why_left_out(path: Path, asked: FolderName) -> str | None:
    if path.name.startswith("."):
        return "a hidden file"
    if asked.repeats == 0:
        return f"its folder {path.parent.name} asks for 0 repeats"
    return why_no_file(path)


def check_repeats(found: Found) -> None:
    rows = sum(source.repeats for source in found.sources)
    if rows > max(MOST_ROWS, len(found.sources)):
        most = max(found.sources, key=lambda source: source.repeats)
        found.problems.append(
            f"{found.folder}: {len(found.sources)} images become {rows} by the repeats that their folders ask for, "
            f"such as {most.repeats} by {most.path.parent.name}; the most is {MOST_ROWS}: give them smaller numbers"
        )

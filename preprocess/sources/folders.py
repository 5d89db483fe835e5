"""Input and output folders of a run, checked before any work."""

import itertools
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.folders.finder import find_images
from sdxl_lora.folders.found import Found

MOST_NAMED = 20
Value = TypeVar("Value")


def check_folders(sources: list[Path], output: Path) -> None:
    """Check the folders of a run.

    Raises:
        ConfigError: source and output folders overlap, or the output is no folder of ours.
    """
    out = output.resolve()
    for folder in sources:
        if out == folder.resolve() or folder.resolve() in out.parents:
            raise ConfigError(
                f"output_dir {output} is inside {folder} and would overwrite source images: choose a folder outside it"
            )
        if out in folder.resolve().parents:
            raise ConfigError(f"{folder} is inside output_dir {output}: choose another output_dir")
    for first, second in itertools.permutations(sources, 2):
        if first.resolve() in [second.resolve(), *second.resolve().parents]:
            raise ConfigError(f"{second} is inside {first}: its images would be of both the concept and its class")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output_dir {output} is a file, it must be a folder")
    ours = (output / ".preprocess").exists() or (output / "metadata.jsonl").exists()
    if not ours and (output / "images").exists():
        raise ConfigError(f"{output / 'images'} was not written by preprocess: choose an empty output_dir")


def find_all(
    input_dir: Path, class_images: Path | None = None, masks: bool = False, leave_out: Collection[str] = ()
) -> Found:
    """Return the images of a run; those for prior preservation are named class_images/...

    Args:
        leave_out: names of images that a person does not want.
    Raises:
        ConfigError: a folder is missing.
        DataError: captions cannot be read, or there is no image at all.
    """
    found = find_captioned(input_dir, masks)
    if class_images is not None:
        others = find_captioned(class_images, masks)
        for source in others.sources:
            source.is_class_image, source.name = True, f"class_images/{source.name}"
        found.sources += others.sources
        found.left_out |= in_class_images(others.left_out)
        found.other_files |= in_class_images(others.other_files)
        found.warnings |= in_class_images(others.warnings)
        found.notes |= in_class_images(others.notes)
    leave_out_named(found, leave_out)
    return found


def leave_out_named(found: Found, names: Collection[str]) -> None:
    """Remove unwanted images. They are no failures, so --strict accepts them.

    Raises:
        DataError: no image is left.
    """
    wanted = [source for source in found.sources if source.name not in names]
    out = {source.name: "not wanted: --leave_out names it" for source in found.sources if source.name in names}
    if out and not wanted:
        raise DataError(no_usable(found.folder, {**found.left_out, **out}))
    for name in sorted({*names} - {*out} - {*found.left_out} - {*found.other_files}):
        found.warn(name, "--leave_out names it, but there is no such image")
    found.sources, found.other_files = wanted, {**found.other_files, **out}
    found.warnings = {name: said for name, said in found.warnings.items() if name not in out}


def in_class_images(by_name: dict[str, Value]) -> dict[str, Value]:
    return {f"class_images/{name}": value for name, value in by_name.items()}


def find_captioned(folder: Path, masks: bool) -> Found:
    """Return the contents of a folder, with each caption on one line."""
    found = find_images(folder, masks)
    if not found.sources:
        raise DataError("\n".join([no_usable(folder, found.left_out), *unused(found)]))
    for source in found.sources:
        if source.caption is not None:
            texts = source.captions or (source.caption,)
            source.lines = tuple(filter(None, (one_line(line) for text in texts for line in text.splitlines())))
            source.captions, source.caption = tuple(map(one_line, source.captions)), one_line(source.caption)
    for name, lines in Counter(source.name for source, *_ in found.lines).items():
        if lines > 1:
            found.warn(name, f"{lines} lines of metadata name it: it is used once, with the caption of the first")
    return found


def one_line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())


def unused(found: Found) -> list[str]:
    """Return lines that list the files found instead of images."""
    reasons = [*found.left_out.items(), *found.other_files.items()]
    more = [f"  ... and {len(reasons) - MOST_NAMED} more"] if len(reasons) > MOST_NAMED else []
    return [f"  {name}: {reason}" for name, reason in reasons[:MOST_NAMED]] + more


def no_usable(folder: Path | str, reasons: dict[str, str]) -> str:
    """Return the message "no usable images in raw: 12 found, 12 rejected (7 truncated, 5 too small)"."""
    counts: dict[str, int] = {}
    for reason in reasons.values():
        kind = kind_of(reason)
        counts[kind] = counts.get(kind, 0) + 1
    parts = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))
    return f"no usable images in {folder}: {len(reasons)} found, {len(reasons)} rejected" + (
        f" ({parts})" if parts else ""
    )


def kind_of(reason: str) -> str:
    """Return a reason's kind in a few words, for counting."""
    if "smaller than" in reason:
        return "too small"
    if "exceeds the limit" in reason:
        return "too large"
    known = ["empty file", "not an image", "truncated", "damaged", "unsupported format", "a directory", "a hidden"]
    known += ["dangling link", "cannot be read", "the captioner"]
    return next((kind for kind in known if reason.startswith(kind)), "other")

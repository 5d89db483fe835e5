"""Contents of an image folder: each image with its caption and mask, and all other files with the reason."""

import dataclasses
from pathlib import Path

from sdxl_lora.config.names import printable
from sdxl_lora.folders.caption_tables import Line, Table


@dataclasses.dataclass(slots=True)
class Source:
    """One image file."""

    path: Path
    name: str  # path relative to the input folder, with / on every system
    caption: str | None = None  # written by a person; None where there is none
    caption_from: str | None = None  # name of the file it was read from
    captions: tuple[str, ...] = ()  # all of them, in place of `caption`, if a table has several
    lines: tuple[str, ...] = ()  # the caption's lines, stripped, for reading them as separate captions
    repeats: int = 1
    class_words: str = ""  # of a kohya folder
    mask: Path | None = None
    is_class_image: bool = False


@dataclasses.dataclass
class Found:
    """Images of a folder, and reports on its other files.

    Attributes:
        left_out: images that cannot be used, with the reason.
        other_files: unused files that are not images, with a description.
        warnings: messages about a file, by its name.
        notes: explanations of how folder names were read.
        lines: lines of metadata files in order, each with its image and table.
        missing: names in metadata files without a usable image.
        problems: errors that stop a run.
    """

    folder: Path
    sources: list[Source] = dataclasses.field(default_factory=list)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    other_files: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    lines: list[tuple[Source, Line, Table]] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def warn(self, name: str, message: str) -> None:
        self.warnings.setdefault(name, []).append(message)

    def shown(self, path: Path) -> str:
        """Return the path relative to the folder, with / and on one line that JSON can hold; see printable."""
        return printable(path.relative_to(self.folder).as_posix())


def as_text(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

"""What a folder of pictures holds: each picture with its caption and mask, and all else by name with the reason."""

import dataclasses
from pathlib import Path

from sdxl_lora.config.names import printable
from sdxl_lora.folders.caption_tables import Line, Table


@dataclasses.dataclass(slots=True)
class Source:
    """One picture file."""

    path: Path
    name: str  # path relative to the input folder, with / on every system
    caption: str | None = None  # written by a person; None where there is none
    caption_from: str | None = None  # name of the file that says so
    captions: tuple[str, ...] = ()  # where a table has several: all of them, in place of `caption`
    lines: tuple[str, ...] = ()  # of its captions, each without blanks around it, for whoever takes them one by one
    repeats: int = 1
    class_words: str = ""  # of a kohya folder
    mask: Path | None = None
    is_class_image: bool = False


@dataclasses.dataclass
class Found:
    """
    Attributes:
        left_out: pictures that cannot be used, with the reason.
        other_files: all that is no picture and not used, with what it is.
        warnings: what a person should know of a file, by its name.
        notes: how the names of folders were understood.
        lines: of metadata files, in their order, each with its picture and table.
        missing: names in metadata files that are of no picture that can be used.
        problems: what stops a run.
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
        """The path relative to the folder, with / and as one line that JSON can hold: see printable."""
        return printable(path.relative_to(self.folder).as_posix())


def as_text(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

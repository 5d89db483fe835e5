"""Meaning of a folder's name: kohya's repeats, or a folder without training images. Reads no file."""

import datetime
import functools
import re
from dataclasses import dataclass

MOST_REPEATS = 1000  # of one folder; more are surely unintended
NUMBERED = re.compile(r"(\d+)_(.+)")  # kohya's "10_sks cat": ten times per epoch, "sks cat" if there is no caption
CAMERA = re.compile(r"[1-9]\d\d[A-Z0-9_]{5}")  # a camera's folder by the DCF standard: 100_PANA
REST_OF_DATE = re.compile(r"\d{1,2}[-_. ]\d{2,4}(?!\d)")  # 24_12_31 party
DATES = ("%Y%m%d", "%d%m%Y", "%m%d%Y", "%y%m%d", "%d%m%y", "%m%d%y", "%Y%m")

RECYCLE_BIN, OF_THE_SYSTEM = "a recycle bin", "of the system, not a person's images"
NOT_A_PERSONS = {
    "__macosx": "what a Mac adds to archives",
    "@eadir": "a NAS's thumbnails",
    "@tmp": OF_THE_SYSTEM,
    "#snapshot": "a NAS's snapshots",
    "@recently-snapshot": "a NAS's snapshots",
    "#recycle": RECYCLE_BIN,
    "@recycle": RECYCLE_BIN,
    "$recycle.bin": RECYCLE_BIN,
    "recycler": RECYCLE_BIN,
    "recycled": RECYCLE_BIN,
    "network trash folder": RECYCLE_BIN,
    "system volume information": OF_THE_SYSTEM,
    "temporary items": OF_THE_SYSTEM,
    "lost+found": OF_THE_SYSTEM,
    "lost.dir": OF_THE_SYSTEM,
    "found.000": OF_THE_SYSTEM,
    "__pycache__": OF_THE_SYSTEM,
}


def why_passed_over(name: str) -> str | None:
    """Return the reason why a folder of this name is skipped; None if it is not."""
    return "a hidden folder" if name.startswith(".") else NOT_A_PERSONS.get(name.lower())


@dataclass(frozen=True)
class FolderName:
    """Repeats and caption requested by a folder's name.

    repeats: passes over each of its images per epoch.
    words: the caption of images that have none.
    note: explanation for the user of the repeats, or of why a number is not taken as repeats; "" without a number.
    problem: the reason why the name cannot be followed, and the remedy.
    """

    repeats: int = 1
    words: str = ""
    note: str = ""
    problem: str = ""


@functools.cache
def read_folder_name(name: str) -> FolderName:
    match = NUMBERED.fullmatch(name)
    if match is None:
        return FolderName()
    number, rest = match[1], match[2].strip()
    kind = other_number(name, number, rest)
    if kind:
        return FolderName(note=f"{number} is {kind}, not repeats: its images are used once")
    if int(number) > MOST_REPEATS:
        return FolderName(
            problem=f"asks for {number} repeats, the most is {MOST_REPEATS}: call it {rest!r} to use its images "
            f"once, or begin its name with fewer repeats, such as 10_{rest}"
        )
    times = "once" if int(number) == 1 else f"{int(number)} times"
    return FolderName(int(number), rest, f"repeats: its images {times} per epoch, {rest!r} where they have no caption")


def other_number(name: str, number: str, rest: str) -> str | None:
    """Return the meaning of a number that is not repeats; None if it may be repeats."""
    if CAMERA.fullmatch(name):
        return "a camera's folder number"
    if len(number) == 4 and 1900 <= int(number) <= 2099:
        return "a year"
    if any(is_date(number, form) for form in DATES) or (len(number) <= 2 and REST_OF_DATE.match(rest)):
        return "a date"
    return "a running number" if len(number) > 1 and number[0] == "0" else None


def is_date(number: str, form: str) -> bool:
    if len(number) != (8 if "%Y" in form and "%d" in form else 6):
        return False
    try:
        return 1900 <= datetime.datetime.strptime(number, form).year <= 2099
    except ValueError:
        return False

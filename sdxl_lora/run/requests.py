"""What may be asked of a run that goes on: a file in its folder, which goes as it is done.

    touch runs/cat/save_now      save a checkpoint after this step
    touch runs/cat/sample_now    draw the sample prompts after this step

The main process looks for them; the others hear of it with the numbers of the steps.
"""

from pathlib import Path
from typing import NamedTuple

from sdxl_lora.io.file_system import remove


class Asked(NamedTuple):
    """What is asked of a run at a step, beside what is due."""

    save: bool = False
    sample: bool = False


NOTHING, EVERYTHING = Asked(), Asked(True, True)
FILES = {"save": "save_now", "sample": "sample_now"}  # by what they ask for


def asked_of(folder: Path) -> Asked:
    """Return what the files in a run's folder ask for."""
    return Asked(*((folder / FILES[what]).exists() for what in Asked._fields))


def forget(folder: Path, asked: Asked) -> None:
    """Remove the files of what is being done."""
    for what, is_asked in asked._asdict().items():
        if is_asked:
            remove(folder / FILES[what])

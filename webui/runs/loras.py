"""A run's LoRA as it is handed out: which of its stages is meant, and under which name it goes into the LoRA folder."""

import filecmp
import os
import shutil
from pathlib import Path

from sdxl_lora.errors import ConfigError, DiskError
from webui.runs.listing import lora_files, stages

NEWEST = "newest"  # in place of the newest stage's name, so that what a run saves later is meant as well


def stage_of(run: Path, stage: str | None) -> str:
    """The name of a stage that is there.

    Raises:
        ConfigError: it is gone, as older checkpoints go; or nothing is there.
    """
    names = list(stages(run))
    if stage in (None, "", NEWEST) and names:
        return names[0]
    if stage not in names:
        raise ConfigError(f"{stage} of {run.name} is no longer there: choose another")
    return stage


def copy_lora_to(folder: Path, run: Path, stage: str) -> Path:
    """Copies the LoRA of a stage into a client's folder and returns where it is then. The newest has the run's own
    name, an earlier one its step behind that; where another run's file has the name, the project's stands before it.

    Raises:
        ConfigError: both names are of other files, or the stage holds no LoRA.
        DiskError: it cannot be written.
    """
    loras = lora_files(stages(run)[stage])
    if not loras:
        raise ConfigError(f"{stage} of {run.name} holds no LoRA file: choose another")
    step = "" if stage == next(iter(stages(run))) else f"-{stage.rpartition('-')[2]}"
    names = [f"{before}{loras[0].stem}{step}.safetensors" for before in ("", f"{run.parent.parent.name}-")]
    free = next((folder / name for name in names if is_ours(folder / name, run)), None)
    if free is None:
        raise ConfigError(f"{names[0]} and {names[1]} in {folder} are of another run: rename one of them first")
    part = folder / f".{free.name}.part"
    try:
        shutil.copyfile(loras[0], part)
        os.replace(part, free)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DiskError(f"cannot write {free}: {error.strerror}") from None
    return free


def is_ours(path: Path, run: Path) -> bool:
    """Return whether the name is free, or the file there is one of this run's."""
    if not path.exists():
        return True
    own = [lora for folder in stages(run).values() for lora in lora_files(folder)[:1]]
    return any(filecmp.cmp(path, lora, shallow=False) for lora in own)

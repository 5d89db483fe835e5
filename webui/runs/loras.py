"""A run's LoRA to hand out: the stage that is meant, and its name in the LoRA folder."""

import filecmp
import os
import shutil
from pathlib import Path

from sdxl_lora.errors import ConfigError, DiskError
from webui.runs.listing import lora_files, stages

NEWEST = "newest"  # stands for the newest stage, including those saved later


def stage_of(run: Path, stage: str | None) -> str:
    """Return the name of an existing stage.

    Raises:
        ConfigError: it is gone, as old checkpoints are; or there is none.
    """
    names = list(stages(run))
    if stage in (None, "", NEWEST) and names:
        return names[0]
    if stage not in names:
        raise ConfigError(f"{stage} of {run.name} is no longer there: choose another")
    return stage


def copy_lora_to(folder: Path, run: Path, stage: str) -> Path:
    """Copy the LoRA of a stage into a client's folder and return its path.

    The newest has the run's own name, an earlier one its step appended; if another run's file has that name, the
    project's name goes in front.

    Raises:
        ConfigError: other files have both names, or the stage holds no LoRA.
        DiskError: it cannot be written.
    """
    loras = lora_files(stages(run)[stage])
    if not loras:
        raise ConfigError(f"{stage} of {run.name} holds no LoRA file: choose another")
    step = "" if stage == next(iter(stages(run))) else f"-{stage.rpartition('-')[2]}"
    names = [f"{before}{loras[0].stem}{step}.safetensors" for before in ("", f"{run.parent.parent.name}-")]
    free = next((folder / name for name in names if is_ours(folder / name, run)), None)
    if free is None:
        raise ConfigError(f"{names[0]} and {names[1]} in {folder} belong to another run: rename one of them first")
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

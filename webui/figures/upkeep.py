"""Upkeep of finished runs: rename, note, set aside. Nothing is deleted here."""

import dataclasses
import os
import shutil
import time
from pathlib import Path

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError, DiskError
from sdxl_lora.run.status import replace_text
from webui.runs.context import Context, run_name
from webui.runs.launch import read_config
from webui.runs.listing import state_of

NOTE = "note.txt"  # in the run's folder
MOST_CHARACTERS = 2000  # of a note


def note_of(run: Path) -> str:
    try:
        return (run / NOTE).read_text(encoding="utf-8", errors="replace")[:MOST_CHARACTERS]
    except OSError:
        return ""


def keep_note(run: Path, words: str) -> None:
    """Save a run's note.

    Raises:
        ConfigError: the run has no folder.
        DiskError: it cannot be written.
    """
    if not run.is_dir():
        raise ConfigError(f"{run.name} has no folder yet to keep a note in")
    try:
        replace_text(run / NOTE, words.strip()[:MOST_CHARACTERS])
    except OSError as error:
        raise DiskError(f"cannot write {run / NOTE}: {error.strerror}") from None


def check_at_rest(context: Context, run: Path) -> None:
    """Check that nothing works on the run.

    Raises:
        ConfigError: something does, or waits to.
    """
    if state_of(run, context.jobs).is_active or any(not job.is_over for job in context.jobs.of(run)):
        raise ConfigError(f"{run_name(run)} is running or queued: stop or cancel it first")


def rename_run(context: Context, run: Path, name: str) -> Path:
    """Rename a run's folder and return its new path; its LoRA files keep their names, even after a resume.

    Raises:
        ConfigError: it is at work, or the name is invalid or taken.
        DiskError: the folder cannot be moved.
    """
    check_at_rest(context, run)
    to = context.places.run_folder(run.parent.parent.name, name.strip())
    if to.exists() or context.jobs.of(to):
        raise ConfigError(f"output_dir {to.name!r} is taken by an earlier run: choose another name")
    try:
        if run.exists():
            keep_lora_name(run)
            run.rename(to)
    except OSError as error:
        raise DiskError(f"cannot rename {run}: {error.strerror}") from None
    with context.jobs.lock:
        for job in context.jobs.of(run):
            context.jobs.write(dataclasses.replace(job, target=str(to)))
    return to


def keep_lora_name(run: Path) -> None:
    """Set output_name to the LoRA's present name, which otherwise follows the folder's."""
    path = run / "config.yaml"
    if path.exists():
        config = read_config(TrainConfig, path)
        if config.output.output_name is None:
            replace_text(path, to_yaml(replace_flat(config, output_name=config.lora_name)))


def set_aside(context: Context, run: Path) -> Path:
    """Move a run and its jobs out of sight; return the folder that then holds them.

    Raises:
        ConfigError: it is at work.
        DiskError: it cannot be moved.
    """
    check_at_rest(context, run)
    to = context.jobs.folder / "deleted" / f"{run.parent.parent.name}-{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        (to / "jobs").mkdir(parents=True)
        if run.exists():
            run.rename(to / run.name)
        with context.jobs.lock:
            for job in context.jobs.of(run):
                shutil.move(os.fspath(context.jobs.folder_of(job.id)), to / "jobs" / job.id)
    except OSError as error:
        raise DiskError(f"cannot move {run} to {to}: {error.strerror}") from None
    return to

"""The run to resume: its checkpoint, its settings, and a check that they agree with the present ones."""

import contextlib
from pathlib import Path

import yaml

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import CheckpointError
from sdxl_lora.run.checkpoints import check_facts, choose_checkpoint, newest_checkpoint, read_manifest

SETTLED_BY_BUDGET = ("base_precision", "optimizer_name", "optimizer_arguments")


def checkpoint_before(config: TrainConfig) -> Path | None:
    """Return the checkpoint that the run resumes, which may be damaged; None where there is none."""
    wanted, folder = config.checkpoint.resume_from_checkpoint, config.run_dir
    if wanted is None:
        return None
    with contextlib.suppress(OSError):  # an unreadable folder, reported where it is opened
        if wanted == "latest":
            return newest_checkpoint(folder)
        return folder / wanted if (folder / wanted).is_dir() else Path(wanted)
    return None


def facts_before(config: TrainConfig) -> dict:
    """Return the facts recorded in that checkpoint; {} where it is missing or unreadable."""
    checkpoint = checkpoint_before(config)
    with contextlib.suppress(CheckpointError):
        if checkpoint is not None:
            return read_manifest(checkpoint)["facts"]
    return {}


def settings_before(config: TrainConfig) -> dict | None:
    """Return config.yaml of the resumed run; {} where it cannot be read, None for a new run."""
    checkpoint = checkpoint_before(config)
    if checkpoint is None or not checkpoint.is_dir():
        return None
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        before = yaml.safe_load((checkpoint.absolute().parent / "config.yaml").read_text(encoding="utf-8"))
        if isinstance(before, dict):
            return before
    return {}


def check_settings_before(config: TrainConfig) -> None:
    """Compare the settings with those of the checkpoint that the run resumes.

    Base and data are ignored: `choose_checkpoint` compares everything later, before the first step.

    Raises:
        CheckpointError: the settings differ, or the folder holds checkpoints and no resume is asked for.
    """
    wanted = config.checkpoint.resume_from_checkpoint
    if wanted is None:
        choose_checkpoint(config.run_dir, None, None, print)
    checkpoint = checkpoint_before(config)
    if checkpoint is None:
        return
    try:
        saved = read_manifest(checkpoint)["facts"]
    except CheckpointError:  # choose_checkpoint reports it, or finds an older one
        return
    now = config.fingerprint()
    if config.compute.memory_budget is not None or config.batch.train_batch_size == "auto":
        now = {name: value for name, value in now.items() if name not in SETTLED_BY_BUDGET}
    check_facts({name: saved.get(name) for name in now}, now, checkpoint)

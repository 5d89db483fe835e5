"""TensorBoard and W&B: opening them, and what they show of pictures. Numbers go through accelerator.log."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from wandb import errors as wandb_errors

from sdxl_lora.prompts import SamplePrompt


def start_trackers(
    accelerator, project: str, run_name: str, folder: Path, values: dict, report: Callable[[str], None]
) -> None:
    """Open the accelerator's trackers, with `values` as the run's configuration.

    W&B that cannot be reached records the run offline: a lost connection must not cost a night. `report` is told.
    """
    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}
    wandb = {"name": run_name, "dir": str(folder)}
    try:
        accelerator.init_trackers(project, plain, init_kwargs={"wandb": wandb})
    except wandb_errors.Error as error:
        report(f"W&B cannot be reached ({error}): this run is recorded offline, upload it later with `wandb sync`")
        accelerator.trackers.clear()
        accelerator.init_trackers(project, plain, init_kwargs={"wandb": {**wandb, "mode": "offline"}})


def log_samples(
    trackers, step: int, prompts: Sequence[SamplePrompt], pictures: Sequence[Sequence[Image.Image]], grid: Path | None
) -> None:
    """The pictures of a step by prompt, and the sheet of all steps."""
    titled = {f"{number} {prompt.text}": pictures[number] for number, prompt in enumerate(prompts) if pictures[number]}
    if grid:
        titled["grid"] = [Image.open(grid)]
    arrays = {title: np.stack([np.asarray(image) for image in images]) for title, images in titled.items()}
    for tracker in trackers:
        if hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(arrays, step=step, **options)

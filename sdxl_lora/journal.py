"""Where a run's numbers and pictures go: the trackers, events.jsonl, one progress bar."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm
from wandb import errors as wandb_errors

from sdxl_lora.memory import memory_gib
from sdxl_lora.run import Run


class Journal:
    """Tells of steps `first_step` + 1 to `total_steps`. Every process calls it, the main one writes."""

    def __init__(self, accelerator, run: Run, first_step: int, total_steps: int):
        self.accelerator, self.run = accelerator, run
        self.bar = tqdm(
            total=total_steps, initial=first_step, desc="training", unit="step", disable=not accelerator.is_main_process
        )
        self._since = time.perf_counter()

    def step(
        self, step: int, images: int, epoch: float, loss: float, learning_rate: float, grad_norm: float, **more: float
    ) -> None:
        """One optimizer step done: `step` counts from 1, `images` over all processes, `epoch` with its part."""
        now = time.perf_counter()
        metrics = {
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "epoch": epoch,
            "images_per_second": images / (now - self._since),
            "memory_gib": memory_gib(self.accelerator.device),
            **more,
        }
        self._since = now
        self.accelerator.log(metrics, step=step)
        self.run.event("step", step=step, **metrics)
        self.run.update(state="training", step=step)
        self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.2g}", refresh=False)
        self.bar.update()

    def validation(self, step: int, loss: float, by_timestep: dict[str, float]) -> None:
        """The loss on held-out pictures after `step` steps."""
        metrics = {"validation_loss": loss, **{f"validation_{name}": value for name, value in by_timestep.items()}}
        self.accelerator.log(metrics, step=step)
        self.run.event("validation", step=step, **metrics)

    def pictures(self, step: int, titled: dict[str, Sequence[Image.Image]]) -> None:
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                arrays = {title: np.stack([np.asarray(image) for image in images]) for title, images in titled.items()}
                tracker.log_images(
                    arrays, step=step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {})
                )

    def say(self, message: str) -> None:
        """A line for the person, above the progress bar, and an event."""
        self.run.event("message", text=message)
        if self.accelerator.is_main_process:
            tqdm.write(message, file=sys.stderr)

    def skip_time(self) -> None:
        """What happened since the last step (a save, pictures) does not count as its time."""
        self._since = time.perf_counter()


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

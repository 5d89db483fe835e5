"""Log of a run: trackers (trackers.py), events.jsonl and a progress bar."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.config.fields import flat_values
from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.performance.device_memory import memory_gib, spill
from sdxl_lora.run.pace import Pace
from sdxl_lora.run.session import Run
from sdxl_lora.run.status import replace_text
from sdxl_lora.run.trackers import log_samples, start_trackers


class RunLogger:
    """Logger of a run's progress. Every process calls it; the main one writes.

    Messages before `open` are kept until then, or until the context ends, each line once.
    """

    def __init__(self, accelerator, run: Run):
        self.accelerator, self.run = accelerator, run
        self._early: dict[str, None] | None = {}
        self._bar: tqdm | None = None
        self.pace = Pace()

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *exc) -> None:
        with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
            self._tell_early()
        self.close()

    def open(self, config: TrainConfig, first_step: int, total_steps: int, plan: Mapping) -> None:
        """Record the settings, open the trackers, and begin to log steps `first_step` + 1 to `total_steps`.

        Args:
            plan: numbers of the training.
        """
        folder, is_main = self.run.folder, self.accelerator.is_main_process
        if is_main:
            replace_text(folder / "config.yaml", to_yaml(config))
        self.info(where_to_go_on(first_step, total_steps))
        run_name = config.logging.tracker_run_name or folder.resolve().name
        project, values = config.logging.tracker_project_name, flat_values(config)
        start_trackers(self.accelerator, project, run_name, folder, values, first_step, self.info)
        self._bar = tqdm(total=total_steps, initial=first_step, desc="training", unit="step", disable=not is_main)
        self.run.event("started", **plan)
        self._tell_early()
        self.info(", ".join(f"{name} {value}" for name, value in plan.items()))

    def step(
        self, step: int, images: int, epoch: float, loss: float, learning_rate: float, grad_norm: float, **more: float
    ) -> None:
        """Log the steps up to `step` (1 is the first): `images` over all processes, `epoch` with its fraction."""
        seconds = self.pace.report(step)
        metrics = {
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "epoch": epoch,
            "images_per_second": images / max(seconds, 1e-9),
            "memory_gib": memory_gib(self.accelerator.device),
            **more,
        }
        left = round(self.pace.seconds_left(), 3)
        self.accelerator.log(metrics, step=step)
        self.run.event("step", step=step, **metrics, seconds_left=left)
        self.run.update(state="training", step=step)
        assert self._bar is not None, "open comes first"
        self._bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.2g}", refresh=False)
        self._bar.update(step - self._bar.n)
        for line in self.pace.news(spill(self.accelerator.device)):
            self.info(line)

    def validation(self, step: int, loss: float, by_timestep: dict[str, float]) -> None:
        """Log the loss on held-out images after `step` steps."""
        metrics = {"validation_loss": loss, **{f"validation_{name}": value for name, value in by_timestep.items()}}
        self.accelerator.log(metrics, step=step)
        self.run.event("validation", step=step, **metrics)

    def samples(
        self, step: int, prompts: Sequence[SamplePrompt], images: Sequence[Sequence[Image.Image]], grid: Path | None
    ) -> None:
        """Log the samples of step `step` by prompt, and the grid of all steps. Only on the main process."""
        log_samples(self.accelerator.trackers, step, prompts, images, grid)
        self.run.event(
            "samples",
            step=step,
            folder=str(self.run.folder / "samples"),
            grid=str(grid) if grid else None,
            prompts=[prompt.text for prompt in prompts],
        )

    def similarity(self, step: int, measures: dict[str, float]) -> None:
        """Log the similarity of the samples of `step` to the training images. Only on the main process."""
        for tracker in self.accelerator.trackers:
            tracker.log(measures, step=step)
        self.run.event("similarity", step=step, **measures)

    def info(self, message: str) -> None:
        """Show a line above the progress bar, and log it as an event."""
        if self._early is not None:
            self._early[message] = None
            return
        self.run.event("message", text=message)
        if self.accelerator.is_main_process:
            tqdm.write(message, file=sys.stderr)

    def _tell_early(self) -> None:
        early, self._early = self._early or {}, None
        for line in early:
            self.info(line)

    def close(self) -> None:
        """Close the progress bar after the last step."""
        if self._bar is not None:
            self._bar.close()


def where_to_go_on(done_steps: int, total_steps: int) -> str:
    """Return the message about the step where a run starts."""
    if not done_steps:
        return "starting at step 0"
    if done_steps < total_steps:
        return f"going on after step {done_steps}"
    what = f"all {done_steps} steps are done"
    if done_steps > total_steps:
        what = f"{done_steps} steps are done, more than the {total_steps} asked for"
    return f"going on after step {done_steps}: {what}; none is trained, the LoRA files are those of step {done_steps}"

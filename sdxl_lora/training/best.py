"""The step with the lowest loss on held-out pictures, and when to stop waiting for a lower one.

Its state stands in every checkpoint, so a resumed run decides as the uninterrupted one. Knows no config.
"""

import json
import math
from pathlib import Path

STATE_NAME = "best.json"


class Best:
    """The lowest validation loss so far, of step `step`.

    Args:
        min_delta: a loss counts as lower if it is so by more than this.
        patience: give up after so many losses in a row that were not lower; None for never.
    """

    def __init__(self, min_delta: float = 0.0, patience: int | None = None):
        self.min_delta, self.patience = min_delta, patience
        self.step: int | None = None
        self.loss = math.inf
        self.measured_step = 0
        self.waited = 0

    def update(self, step: int, loss: float) -> bool:
        """Take in the loss after `step` steps; whether it is the lowest. NaN never is."""
        self.measured_step = step
        if not loss < self.loss - self.min_delta:
            self.waited += 1
            return False
        self.step, self.loss, self.waited = step, loss, 0
        return True

    @property
    def is_given_up(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    @property
    def checkpoint(self) -> str | None:
        """The name of its checkpoint."""
        return None if self.step is None else f"checkpoint-{self.step}"

    def state(self) -> dict:
        return {name: getattr(self, name) for name in ("step", "loss", "measured_step", "waited")}

    def register_hooks(self, accelerator) -> None:
        """Make it part of accelerator.save_state and load_state."""

        def save(models, weights, folder: str) -> None:
            if accelerator.is_main_process:
                (Path(folder) / STATE_NAME).write_text(json.dumps(self.state()), encoding="utf-8")

        def load(models, folder: str) -> None:
            vars(self).update(json.loads((Path(folder) / STATE_NAME).read_text(encoding="utf-8")))

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)

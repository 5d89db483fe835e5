"""What is due after which step."""

from typing import NamedTuple

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.training.data import TrainingData


class Due(NamedTuple):
    """What is to be done after a step; nothing is false."""

    log: bool = False
    evaluate: bool = False
    checkpoint: bool = False

    def __bool__(self) -> bool:
        return any(self)


class Cadence:
    """When a training logs, evaluates (validation and samples) and saves; each always at the end."""

    def __init__(self, config: TrainConfig, data: TrainingData):
        self.config, self.sampler, self.total_steps = config, data.sampler, data.total_steps
        self.has_evaluation = bool(data.prompts or data.held_out)

    def after(self, step: int) -> Due:
        """What is due after `step` steps, 1 being the first."""
        config = self.config
        epochs = self.sampler.epoch_of(step - 1), self.sampler.epoch_of(step)
        every_n_epochs = None if config.evaluation.validation_steps else config.evaluation.validation_epochs
        evaluate = self.has_evaluation and self._is_due(
            step, epochs, every_n_epochs, config.evaluation.validation_steps
        )
        checkpoint = self._is_due(
            step, epochs, config.checkpoint.checkpointing_epochs, config.checkpoint.checkpointing_steps
        )
        return Due(self._is_due(step, epochs, None, config.logging.logging_steps), evaluate, checkpoint)

    def _is_due(
        self, step: int, epochs: tuple[int, int], every_n_epochs: int | None, every_n_steps: int | None
    ) -> bool:
        by_steps = every_n_steps is not None and step % every_n_steps == 0
        by_epochs = every_n_epochs is not None and epochs[1] // every_n_epochs > epochs[0] // every_n_epochs
        return by_steps or by_epochs or step == self.total_steps

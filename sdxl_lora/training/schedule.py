"""Schedule of logging, evaluation, checkpoints and samples."""

import math
from typing import NamedTuple

from sdxl_lora.config.sections.evaluation import EvaluationConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.run.pace import ToCome
from sdxl_lora.run.requests import Asked
from sdxl_lora.training.data import TrainingData
from sdxl_lora.training.data_plan import DataPlan

MOST_EVALUATIONS = 10  # in a training without a setting for their interval


class Due(NamedTuple):
    """Work that is due after a step; false where there is none."""

    log: bool = False
    evaluate: bool = False
    checkpoint: bool = False
    sample: bool = False

    def __bool__(self) -> bool:
        return any(self)

    def with_asked(self, asked: Asked) -> "Due":
        """Return the due work plus a person's requests."""
        return self._replace(checkpoint=self.checkpoint or asked.save, sample=self.sample or asked.sample)


class EvaluationCadence(NamedTuple):
    """Interval of evaluations between the first step and the end; one of the two fields is given."""

    every_n_epochs: int | None = None
    every_n_steps: int | None = None

    def __str__(self) -> str:
        number, what = (self.every_n_epochs, "epoch") if self.every_n_epochs else (self.every_n_steps, "step")
        return f"every {what}" if number == 1 else f"every {number} {what}s"


def evaluation_cadence(evaluation: EvaluationConfig, sampler, total_steps: int) -> EvaluationCadence:
    """Return the settings' cadence; by default every N epochs, at most MOST_EVALUATIONS including that of step 0."""
    if evaluation.validation_steps:
        return EvaluationCadence(every_n_steps=evaluation.validation_steps)
    if evaluation.validation_epochs:
        return EvaluationCadence(every_n_epochs=evaluation.validation_epochs)
    between = MOST_EVALUATIONS - 1
    if epochs := sampler.passes(total_steps):
        return EvaluationCadence(every_n_epochs=max(1, math.ceil(epochs / between)))
    return EvaluationCadence(every_n_steps=max(1, math.ceil(total_steps / between)))  # a stream has no epochs


class Cadence:
    """Steps at which a training logs, evaluates (validation and samples) and saves; all three at the end too."""

    def __init__(self, config: TrainConfig, data: TrainingData | DataPlan):
        self.config, self.sampler, self.total_steps = config, data.sampler, data.total_steps
        self.has_evaluation = bool(data.prompts or data.held_out)
        self.evaluation = evaluation_cadence(config.evaluation, data.sampler, data.total_steps)

    def after(self, step: int) -> Due:
        """Return the work due after step `step`; 1 is the first."""
        config = self.config
        epochs = self.sampler.epoch_of(step - 1), self.sampler.epoch_of(step)
        evaluate = self.has_evaluation and self._is_due(step, epochs, *self.evaluation)
        checkpoint = self._is_due(
            step, epochs, config.checkpoint.checkpointing_epochs, config.checkpoint.checkpointing_steps
        )
        return Due(self._is_due(step, epochs, None, config.logging.logging_steps), evaluate, checkpoint, evaluate)

    def to_come(self, step: int) -> ToCome:
        """Return the work that remains once step `step` has trained, including that due after it; 0 is the start."""
        saving = self.config.checkpoint
        evaluations = self._times_due(step, *self.evaluation) + (step == 0) if self.has_evaluation else 0
        checkpoints = self._times_due(step, saving.checkpointing_epochs, saving.checkpointing_steps)
        return ToCome(max(0, self.total_steps - step), evaluations, checkpoints)

    def _times_due(self, step: int, every_n_epochs: int | None, every_n_steps: int | None) -> int:
        """Count the steps from `step` to the last that are due; those due by epochs and by steps count twice."""
        first, last = max(step, 1), self.total_steps
        if first > last:
            return 0
        times = 1  # the end
        if every_n_steps is not None:
            times += (last - 1) // every_n_steps - (first - 1) // every_n_steps
        if every_n_epochs is not None:
            epochs = self.sampler.epoch_of(first - 1), self.sampler.epoch_of(last - 1)
            times += epochs[1] // every_n_epochs - epochs[0] // every_n_epochs
        return min(times, last - first + 1)

    def _is_due(
        self, step: int, epochs: tuple[int, int], every_n_epochs: int | None, every_n_steps: int | None
    ) -> bool:
        by_steps = every_n_steps is not None and step % every_n_steps == 0
        by_epochs = every_n_epochs is not None and epochs[1] // every_n_epochs > epochs[0] // every_n_epochs
        return by_steps or by_epochs or step == self.total_steps

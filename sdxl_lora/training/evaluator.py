"""Loss on held-out images, and the best step by this loss or by similarity.

Timesteps and noise are fixed, so that the curve shows learning and not random draws.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.collate import Latents, TextEmbeddings, collate
from sdxl_lora.data.image_dataset import Examples
from sdxl_lora.diffusion.objective import noise_prediction_loss
from sdxl_lora.distributed.collectives import raise_on_all_ranks
from sdxl_lora.rng import SampleKey
from sdxl_lora.run.logger import RunLogger
from sdxl_lora.run.session import Run
from sdxl_lora.training.data import TrainingData
from sdxl_lora.training.ema import PublishedWeights
from sdxl_lora.training.metrics import means_by_timestep, sums_by_timestep
from sdxl_lora.training.model import LoraModel

STATE_NAME = "best.json"
TIMESTEPS = 4  # per image, in the middle of equal ranges


class EarlyStopping:
    """Tracker of the best step so far, by lowest loss or highest similarity, and of the measurements since.

    Its state is part of every checkpoint, so a resumed run decides like an uninterrupted one.

    Args:
        min_delta: a measurement is better only if it improves by more than this.
        patience: measurements in a row without improvement before training stops; None for never.
        by_similarity: the measurement is a similarity, of which higher is better.
    """

    def __init__(self, min_delta: float = 0.0, patience: int | None = None, by_similarity: bool = False):
        self.min_delta, self.patience, self.sign = min_delta, patience, -1 if by_similarity else 1
        self.step: int | None = None
        self.loss = math.inf
        self.measured_step = 0
        self.waited = 0

    def update(self, step: int, measured: float) -> bool:
        """Record the measurement after `step` steps and return whether it is the best; NaN never is."""
        self.measured_step = step
        if not self.sign * measured < self.loss - self.min_delta:
            self.waited += 1
            return False
        self.step, self.loss, self.waited = step, self.sign * measured, 0
        return True

    @property
    def should_stop(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    @property
    def name(self) -> str:
        """Return the name of the best measurement."""
        return "lowest validation loss" if self.sign > 0 else "highest similarity"

    @property
    def value(self) -> str:
        """Return the best measurement and its step as text; "" where there is none."""
        return "" if self.step is None else f"{self.sign * self.loss:.4f}, of step {self.step}"

    @property
    def why_stopped(self) -> str:
        losses, lower = ("validation losses", "lower") if self.sign > 0 else ("similarities", "higher")
        return f"{self.waited} {losses} in a row were not {lower}"

    @property
    def checkpoint(self) -> str | None:
        """Return the name of the best step's checkpoint."""
        return None if self.step is None else f"checkpoint-{self.step}"

    def state(self) -> dict:
        """Return the state to save; `loss` is minus the similarity where that decides."""
        return {name: getattr(self, name) for name in ("step", "loss", "measured_step", "waited")}

    def save(self, folder: Path) -> None:
        (folder / STATE_NAME).write_text(json.dumps(self.state()), encoding="utf-8")

    def load(self, folder: Path) -> None:
        vars(self).update(json.loads((folder / STATE_NAME).read_text(encoding="utf-8")))


class Evaluator:
    """Measurement of the validation loss, shared among the processes, and of the best step.

    by_similarity: samples decide the best step, not the loss.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator,
        model: LoraModel,
        shown: PublishedWeights,
        data: TrainingData,
        run: Run,
        logger: RunLogger,
    ):
        self.accelerator, self.model, self.shown, self.data = accelerator, model, shown, data
        self.seed, self.run, self.logger = config.seed, run, logger
        evaluation = config.evaluation
        self.by_similarity = evaluation.by_similarity
        self.best = EarlyStopping(
            evaluation.early_stopping_min_delta, evaluation.early_stopping_patience, self.by_similarity
        )

    @property
    def should_stop(self) -> bool:
        return self.best.should_stop

    @property
    def _decides(self) -> bool:
        return self.by_similarity or bool(self.data.held_out)

    def save(self, folder: Path, step: int) -> None:
        if self._decides:
            self.best.save(folder)

    def load(self, folder: Path) -> None:
        if self._decides:
            self.best.load(folder)

    def evaluate(self, step: int) -> bool:
        """Log the validation loss after `step` steps, unless a stop is requested meanwhile.

        Returns:
            Whether the loss decides and is the lowest so far; step 0, the base alone, does not compete.
        """
        if not self.data.held_out:
            return False
        accelerator, steps = self.accelerator, self.model.num_train_timesteps
        with self.logger.pace.aside("validation"):
            with raise_on_all_ranks(accelerator), accelerator.autocast(), self.shown.shown():
                sums = validation_sums(self.model.unet, self.model.scheduler, self._batches(steps))
            sums = accelerator.reduce(sums, "sum")
        if sums[1].min() < len(self.data.held_out):
            return False
        loss = (sums[0] / sums[1]).mean().item()
        self.logger.validation(step, loss, means_by_timestep(sums, steps))
        return not self.by_similarity and self._is_best(step, validation_loss=loss)

    def judge(self, step: int, draw: Callable[[int], float | None]) -> bool:
        """Draw the samples after `step` steps if similarity decides.

        Args:
            draw: returns their similarity, the same on every process; None where it could not be measured.
        Returns:
            Whether the similarity is the highest so far; step 0, the base alone, does not compete.
        """
        if not self.by_similarity or (similarity := draw(step)) is None:
            return False
        return self._is_best(step, similarity=similarity)

    def _is_best(self, step: int, **measured: float) -> bool:
        if not (step and self.best.update(step, *measured.values())):
            return False
        self.run.event("best", step=step, **measured, checkpoint=self.best.checkpoint)
        self.run.update(best_checkpoint=self.best.checkpoint)
        return True

    def _batches(self, num_train_timesteps: int) -> Iterator[dict[str, torch.Tensor]]:
        accelerator, data = self.accelerator, self.data
        for index in data.held_out[accelerator.process_index :: accelerator.num_processes]:
            if self.run.stop_requested():
                return
            batch = validation_batch(
                index, data.examples, data.latents, self.model.text, self.seed, num_train_timesteps
            )
            yield {name: tensor.to(accelerator.device) for name, tensor in batch.items()}


def validation_batch(
    index: int, examples: Examples, latents: Latents, text: TextEmbeddings, seed: int, num_train_timesteps: int
) -> dict[str, torch.Tensor]:
    """Return one held-out image at TIMESTEPS timesteps, as a batch of `collate`.

    Its sample keys have negative epochs, which no training has, so its noise is always the same and never trained on.
    """
    samples = [SampleKey(index, -1 - place) for place in range(TIMESTEPS)]
    batch = collate(samples, examples, latents, text, seed, num_train_timesteps)
    middles = [(2 * place + 1) * num_train_timesteps // (2 * TIMESTEPS) for place in range(TIMESTEPS)]
    return {**batch, "timesteps": torch.tensor(middles)}


@torch.no_grad()
def validation_sums(unet, scheduler, batches: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return sums and numbers of the plain losses by timestep, without dropout: (2, TIMESTEPS)."""
    steps = scheduler.config.num_train_timesteps
    was_training = unet.training
    unet.eval()
    sums = torch.zeros(2, TIMESTEPS, device=next(unet.parameters()).device)
    try:
        for batch in batches:
            losses = noise_prediction_loss(unet, scheduler, batch["latents"], batch, batch["noise"], batch["timesteps"])
            sums += sums_by_timestep(losses, batch["timesteps"], steps, TIMESTEPS)
    finally:
        unet.train(was_training)
    return sums

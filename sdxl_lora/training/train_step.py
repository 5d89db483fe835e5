"""Optimizer step: forward, backward, clipping, update."""

import contextlib
import math

import torch
from accelerate.utils import gather_object

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.collate import PRESERVES, StepBatch
from sdxl_lora.diffusion.objective import noise_prediction_loss, predict
from sdxl_lora.distributed.gradients import average_gradients
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.lora.switch import adapters_off
from sdxl_lora.models.text_encoders import LiveTextEncoder
from sdxl_lora.optimizers.optimizers import set_learning_rate
from sdxl_lora.performance.cuda_graphs import RecordedMicroStep
from sdxl_lora.performance.device_memory import free_memory, is_out_of_memory
from sdxl_lora.rng import keyed_seed
from sdxl_lora.run.logger import RunLogger
from sdxl_lora.run.session import Run
from sdxl_lora.training.batch_shape import BatchShape
from sdxl_lora.training.data import TrainingData
from sdxl_lora.training.metrics import StepMetrics, check_finite
from sdxl_lora.training.model import LoraModel, is_recorded_by_several

OF_BASE = "base_"  # prefix of embeddings by text encoders without their adapters
ROOM_TO_DRAW = 12 * 2**30  # bytes, enough for validation and samples of 1024 px


class TrainStep:
    """This process's part of each optimizer step, done when called with the step's batch.

    NaN or infinity changes no weight: an optimizer that sees it on the device then changes nothing until the metrics
    are read; for others the host checks every step.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator,
        model: LoraModel,
        optimizer,
        shape: BatchShape,
        metrics: StepMetrics,
        run: Run,
        logger: RunLogger,
    ):
        self.config, self.accelerator, self.model, self.optimizer = config, accelerator, model, optimizer
        self.metrics, self.run, self.logger = metrics, run, logger
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.recorded = None
        self.sends_gradients = is_recorded_by_several(config.compute, accelerator.num_processes)
        if config.compute.cuda_graphs == "on":
            self.recorded = RecordedMicroStep(self.compute, self.parameters, logger.info)
        # Only torch's fused optimizers can skip a step by a flag on the device; fp16's scaler sets it itself.
        are_fused = all(group.get("fused") for group in optimizer.param_groups)
        self.sees_found_inf = are_fused and accelerator.scaler is None
        self.set_batch_shape(shape)

    def set_batch_shape(self, shape: BatchShape) -> None:
        self.shape = shape
        self.accelerator.gradient_accumulation_steps = shape.micro_steps

    def __call__(self, batch: StepBatch, step: int, learning_rate: float | None) -> None:
        """Do the step after the first `step` steps of a training.

        Raises:
            NonFiniteError: NaN or infinity, where the optimizer could not be told on the device.
        """
        accelerator, metrics = self.accelerator, self.metrics
        in_place = {"set_to_none": False} if self.recorded else {}
        set_learning_rate(self.optimizer, learning_rate, step)
        metrics.begin(batch.image_count, batch.names)
        for micro_step, (counts, micro_batch) in enumerate(batch.micro_batches):
            with accelerator.accumulate(*self.model.wrapped):
                key = (self.config.seed, "dropout", step, micro_step, accelerator.process_index)
                torch.manual_seed(keyed_seed(*key))
                tensors = self.on_device(micro_batch)
                # The mean over the step's images: backward divides by micro_steps, DDP and average_gradients by the
                # number of processes.
                share = counts * self.shape.micro_steps * accelerator.num_processes / batch.image_count
                preserves = PRESERVES in tensors
                # Not recorded: a young adapter's preserving gradients are rounding errors, which no replay repeats.
                compute = self.compute
                if self.recorded:
                    compute = self.recorded.beside if preserves else self.recorded
                losses = compute({**tensors, "share": torch.full((), share, device=accelerator.device)})
                if counts:
                    metrics.add(losses, tensors["timesteps"], preserves)
                if accelerator.sync_gradients:
                    self.close(step)
                self.optimizer.step()
                self.optimizer.zero_grad(**in_place)

    def make_room(self) -> None:
        """Release the memory of recorded steps if evaluating and drawing may need it; they are recorded anew later."""
        if self.recorded and torch.cuda.mem_get_info()[0] < ROOM_TO_DRAW:
            self.recorded.release()

    def close(self, step: int) -> None:
        """Sum over the processes after a step's last backward, clip, and make sure that NaN changes no weight."""
        metrics, is_spoilt = self.metrics, fault_point("step", step + 1)
        if self.sends_gradients:
            average_gradients(self.parameters)
        metrics.close(self.accelerator, bool(self.run.stop_requested()), is_spoilt, self.run.asked())
        limit = self.config.optimizer.max_grad_norm or math.inf
        metrics.guard(self.accelerator.clip_grad_norm_(self.parameters, limit), self.accelerator.scaler is not None)
        if self.sees_found_inf:
            self.optimizer.optimizer.found_inf = metrics.found_inf
        else:
            check_finite(metrics.numbers(), self.run)

    def compute(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the losses (B,) of a micro-batch, and add their gradients, times its share, to the parameters'."""
        if isinstance(self.model.text, LiveTextEncoder):
            batch = {**batch, **self.model.text.encode_tokens(batch, self.model.wrapped[1])}
        losses = noise_prediction_loss(
            self.model.wrapped[0],
            self.model.scheduler,
            batch["latents"],
            batch,
            batch["noise"],
            batch["timesteps"],
            self.config.objective,
            self.base_prediction(batch) if PRESERVES in batch else None,
        )
        self.accelerator.backward(losses.sum() * batch["share"])
        return losses

    @torch.no_grad()
    def base_prediction(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the base's prediction (B, C, h, w) for a micro-batch, without the adapters and unwrapped."""
        own = {name.removeprefix(OF_BASE): tensor for name, tensor in batch.items() if name.startswith(OF_BASE)}
        with adapters_off([self.model.unet]):
            return predict(
                self.model.unet,
                self.model.scheduler,
                batch["latents"],
                {**batch, **own},
                batch["noise"],
                batch["timesteps"],
            )

    def on_device(self, batch: dict[str, torch.Tensor | list[str]]) -> dict[str, torch.Tensor]:
        """Return a micro-batch's tensors on the device; prompts become tokens for text encoders that train."""
        tensors, text = {}, self.model.text
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                tensors[name] = value.to(self.accelerator.device, non_blocking=True)
            else:
                assert isinstance(text, LiveTextEncoder), "cached embeddings come in place of prompts"
                tokens = text.tokens_of(value)
                tensors |= tokens
                if PRESERVES in batch:
                    with torch.no_grad(), adapters_off([text.encoders]):
                        of_base = text.encode_tokens(tokens, text.encoders)
                    tensors |= {f"{OF_BASE}{key}": tensor for key, tensor in of_base.items()}
        return tensors

    def fit_to_memory(self, data: TrainingData, step: int) -> None:
        """Try the chosen micro-batch with the largest coming image, and a smaller one if it runs out of memory.

        Changes no weight and no random draw, since those depend on no state.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        samples = (sample for _, of_step in data.samples_from(step) for sample in of_step if sample)
        largest = max(samples, key=lambda sample: math.prod(data.examples[sample.example].target_size), default=None)
        while largest and not all(gather_object([self.fits(data, largest)])):
            before = self.shape.micro_batch
            self.set_batch_shape(self.shape.smaller(self.config.batch))
            self.logger.info(f"out of memory with {before} images at once: going on with {self.shape.micro_batch}")
        self.logger.pace.begin_steps()

    def fits(self, data: TrainingData, sample) -> bool:
        """Return whether a forward and a backward of a full micro-batch of this image fit into memory."""
        fits = True
        try:
            fault_point("rehearsal")
            with contextlib.ExitStack() as alone:
                for model in self.model.wrapped:
                    alone.enter_context(self.accelerator.no_sync(model))
                share = torch.zeros((), device=self.accelerator.device)
                batch = data.collator(self.shape)([sample] * self.shape.micro_batch)
                self.compute({**self.on_device(batch), "share": share})
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        self.optimizer.zero_grad()
        free_memory()
        return fits

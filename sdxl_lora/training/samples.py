"""Samples during a training: images of the validation prompts, for the run's folder and the trackers."""

from pathlib import Path

from PIL import Image

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.distributed.collectives import on_main_and_broadcast, raise_on_all_ranks
from sdxl_lora.models.base_source import Base
from sdxl_lora.models.loading import load_vae
from sdxl_lora.performance.device_memory import free_memory, is_out_of_memory
from sdxl_lora.run.logger import RunLogger
from sdxl_lora.run.session import Run
from sdxl_lora.sampling.generate import are_drawn, generate_images, read_samples, spread, to_image, write_grid
from sdxl_lora.sampling.similarity import Similarity
from sdxl_lora.training.data import TrainingData
from sdxl_lora.training.ema import PublishedWeights
from sdxl_lora.training.model import LoraModel

SIMILARITY_REFERENCES = 100  # training images that samples are compared with


class SampleWriter:
    """Writer of the samples of a step; the processes share the work.

    Attributes:
        newest: the first sample of the newest step, on the main process.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator,
        base: Base,
        model: LoraModel,
        shown: PublishedWeights,
        data: TrainingData,
        similarity: Similarity | None,
        run: Run,
        logger: RunLogger,
    ):
        self.accelerator, self.model, self.shown, self.data = accelerator, model, shown, data
        self.similarity, self.run, self.logger = similarity, run, logger
        self.prompts, self.images = data.prompts, config.evaluation.num_validation_images
        self.rescale = guidance_rescale_of(config, model.sampling_scheduler.config)
        self.vae = load_vae(base) if data.prompts else None
        self.newest: Image.Image | None = None

    @property
    def folder(self) -> Path:
        return self.run.folder / "samples"

    def are_written(self, step: int) -> bool:
        """Return whether all samples of a step exist; the same on every process."""
        return on_main_and_broadcast(self.accelerator, lambda: are_drawn(self.folder, step, self.prompts, self.images))

    def write(self, step: int, is_asked: bool = False) -> float | None:
        """Draw the prompts with the LoRA after `step` steps.

        Args:
            is_asked: a person asked for the samples, and is told if there are no prompts.

        Returns:
            The similarity of all samples with the trigger word, the same on every process; None if not measured.
        """
        if is_asked and not self.prompts:
            self.logger.info("asked to draw, but the run has no sample prompts: give --validation_prompt")
        if not self.prompts:
            return None
        with self.logger.pace.aside("samples"):
            return self._draw(step)

    def _draw(self, step: int) -> float | None:
        accelerator = self.accelerator
        self.run.update(state="sampling")
        try:
            with raise_on_all_ranks(accelerator), accelerator.autocast(), self.shown.shown():
                generate_images(
                    self.model.unet,
                    self.vae,
                    self.model.sampling_scheduler,
                    self.prompts,
                    self.model.text.read,
                    self.images,
                    self.rescale,
                    self.folder,
                    step,
                    accelerator.process_index,
                    accelerator.num_processes,
                    self.run.stop_requested,
                )
        except RuntimeError as error:  # a sample is not worth a training
            if not is_out_of_memory(error):
                raise
            free_memory()
            self.logger.info(f"out of memory while drawing samples at step {step}, going on ({error})")
        return on_main_and_broadcast(accelerator, lambda: self._show(step))

    def _show(self, step: int) -> float | None:
        """Log the samples of a step and measure their similarity. Only on the main process, without a time limit."""
        images = read_samples(self.folder, step, len(self.prompts), self.images)
        self.newest = next((image for of_prompt in images for image in of_prompt), None)
        grid = write_grid(self.folder, step, self.prompts, self.images, self.logger.info)
        self.logger.samples(step, self.prompts, images, grid)
        if not (self.similarity and self.newest):
            return None
        try:
            measured = self._similarities(self.similarity, images)
        except RuntimeError as error:  # nor is a similarity
            if not is_out_of_memory(error):
                raise
            free_memory()
            self.logger.info(f"out of memory while measuring similarity at step {step}, going on ({error})")
            return None
        self.logger.similarity(step, measured)
        are_all = all(len(of_prompt) == self.images for of_prompt in images)  # fewer if a stop was requested meanwhile
        return measured.get("similarity") if are_all else None

    def _similarities(self, similarity: Similarity, images: list[list[Image.Image]]) -> dict[str, float]:
        """Return the similarities of the samples to the training images."""
        data, device = self.data, self.accelerator.device
        if similarity.references is None:
            assert data.images is not None, "the config asks for images that can be read again"
            out = set(data.held_out)
            trained = [i for i, e in enumerate(data.examples) if not e.is_class_image and i not in out]
            chosen = spread(trained, SIMILARITY_REFERENCES)
            similarity.refer_to([to_image(data.images.load(index)["pixels"]) for index in chosen], device)
        return similarity.of_samples(self.prompts, images, device)


def guidance_rescale_of(config: TrainConfig, scheduler_config) -> float:
    """Return the guidance rescale: by default 0.7 for zero terminal SNR (arXiv:2305.08891, section 3.4), else 0."""
    if config.evaluation.validation_guidance_rescale is not None:
        return config.evaluation.validation_guidance_rescale
    return 0.7 if scheduler_config.get("rescale_betas_zero_snr") else 0.0

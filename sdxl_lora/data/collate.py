"""Collate samples into the tensors of a micro-batch: cached records, random draws, size conditioning."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sdxl_lora.config.sections.captions import CaptionConfig
from sdxl_lora.config.sections.objective import NoiseConfig
from sdxl_lora.data.captions import AS_WRITTEN, NO_PRESERVATION, Preservation, varied_caption
from sdxl_lora.data.image_dataset import Examples
from sdxl_lora.data.sampler import split_step
from sdxl_lora.data.size_conditioning import time_ids
from sdxl_lora.diffusion.noise import (
    PLAIN_NOISE,
    draw_flip,
    draw_input_noise,
    draw_latents,
    draw_noise,
    draw_timestep,
)
from sdxl_lora.diffusion.timesteps import UNIFORM, TimestepDensity
from sdxl_lora.rng import SampleKey


class Latents(Protocol):
    """Source of an image's latents: a cache, or a live VAE.

    vae_key: changes with the VAE's weights.
    """

    vae_key: str

    def read(self, example: Any, flip: bool = False, /) -> dict[str, torch.Tensor]: ...


class TextEmbeddings(Protocol):
    """Source of a prompt's embeddings: a cache, or live text encoders."""

    def read(self, prompt: str) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Augmentation:
    """Random variation between passes over an image, beyond plain noise and uniform timesteps."""

    random_flip: bool = False
    noise: NoiseConfig = PLAIN_NOISE
    timesteps: TimestepDensity = UNIFORM
    captions: CaptionConfig = AS_WRITTEN
    preservation: Preservation = NO_PRESERVATION


NO_AUGMENTATION = Augmentation()
PRESERVES = "preserves"  # key in a batch that preserves the base's predictions


def collate(
    samples: Sequence[SampleKey],
    examples: Examples,
    latents: Latents,
    texts: TextEmbeddings | None,
    seed: int,
    num_train_timesteps: int,
    augmentation: Augmentation = NO_AUGMENTATION,
    prior_loss_weight: float = 1.0,
    preserves: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the loss's inputs for samples of one bucket.

    Args:
        latents, texts: the caches, read by (index, flip) and by caption; without texts, the batch has a list of prompts
            in place of their embeddings.
        prior_loss_weight: weight of class images; others weigh 1.
        preserves: the step preserves the base's predictions: captions without trigger words, no masks, all images weigh
            as class images.
    Returns:
        on the CPU: latents and noise (B, C, h, w) float32, timesteps (B,) int64, prompt_embeds (B, 77 k, D) and
        pooled_embeds (B, P) in the cache's precision, time_ids (B, 6) float32, loss_weight (B,); if enabled also
        input_noise (B, C, h, w) and mask (B, 1, h, w); and PRESERVES (B,) if `preserves`.
    """
    rows = []
    for sample in samples:
        example = examples[sample.example]
        image = latents.read(sample.example, augmentation.random_flip and draw_flip(seed, sample))
        sizes = (image["original_size"], image["crop_top_left"], example.target_size)
        row: dict[str, Any] = {
            "latents": draw_latents(seed, sample, image["mean"], image["std"]),
            "noise": draw_noise(seed, sample, image["mean"].shape, augmentation.noise),
            "timesteps": torch.tensor(draw_timestep(seed, sample, num_train_timesteps, augmentation.timesteps)),
            "time_ids": time_ids(*sizes)[0],
            "loss_weight": torch.tensor(prior_loss_weight if preserves or example.is_class_image else 1.0),
        }
        prompt = varied_caption(example.captions, seed, sample, augmentation.captions)
        if preserves:
            row[PRESERVES] = torch.tensor(True)
            prompt = augmentation.preservation.caption(prompt)
        row |= {"prompts": prompt} if texts is None else texts.read(prompt)
        if augmentation.noise.input_perturbation:
            row["input_noise"] = draw_input_noise(seed, sample, row["noise"], augmentation.noise.input_perturbation)
        if "mask" in image and not preserves:
            row["mask"] = image["mask"]
        rows.append(row)
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: rows if name == "prompts" else torch.stack(rows) for name, rows in columns.items()}


@dataclass(frozen=True)
class StepBatch:
    """This process's part of a step.

    Attributes:
        micro_batches: results of `collate`, each with whether it counts: if there are too few images for all processes,
            one that does not count keeps them in step.
        image_count: images of the step over all processes.
        names: names of the step's images, as far as this process knows them.
    """

    epoch: int
    micro_batches: list[tuple[bool, dict[str, torch.Tensor | list[str]]]]
    image_count: int
    names: set[str]


@dataclass(frozen=True)
class Collator:
    """Make batches of samples; see `collate` for the inputs.

    Attributes:
        rank, world_size: this process's place among those that share a step.
        pin: put batches into pinned memory, which a GPU copies from asynchronously.
    """

    examples: Examples
    latents: Latents
    text: TextEmbeddings | None
    seed: int
    num_train_timesteps: int
    augmentation: Augmentation = NO_AUGMENTATION
    prior_loss_weight: float = 1.0
    rank: int = 0
    world_size: int = 1
    micro_steps: int = 1
    pin: bool = False

    def __call__(self, samples: Sequence[SampleKey], preserves: bool = False) -> dict[str, torch.Tensor | list[str]]:
        batch = collate(
            samples,
            self.examples,
            self.latents,
            self.text,
            self.seed,
            self.num_train_timesteps,
            self.augmentation,
            self.prior_loss_weight,
            preserves,
        )
        return {
            name: value.pin_memory() if self.pin and torch.is_tensor(value) else value for name, value in batch.items()
        }

    def steps(self, steps: Iterable[tuple[int, Sequence[SampleKey | None]]], first: int = 0) -> Iterator[StepBatch]:
        """Yield this process's part of each step, given as its epoch and samples; `first` steps are already done."""
        for step, (epoch, samples) in enumerate(steps, first):
            preserves = self.augmentation.preservation.is_due(self.seed, step)
            names = {self.examples[sample.example].name for sample in samples if sample}  # a stream forgets its images
            parts = split_step(samples, self.rank, self.world_size, self.micro_steps)
            own = [(bool(part), [sample for sample in part or samples[:1] if sample]) for part in parts]
            yield StepBatch(epoch, [(counts, self(part, preserves)) for counts, part in own], len(samples), names)

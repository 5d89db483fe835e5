"""Turns to the tensors of a micro-batch: cached records, the draws of chance, size conditioning."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from sdxl_lora.data.captions import AS_WRITTEN, CaptionVariants, caption_in_turn
from sdxl_lora.data.image_dataset import Example
from sdxl_lora.data.sampler import share
from sdxl_lora.data.size_conditioning import time_ids
from sdxl_lora.diffusion.noise import (
    PLAIN_NOISE,
    NoiseShape,
    draw_flip,
    draw_input_noise,
    draw_latents,
    draw_noise,
    draw_timestep,
)
from sdxl_lora.diffusion.timesteps import UNIFORM, TimestepDensity
from sdxl_lora.rng import Turn


@dataclass(frozen=True)
class Chance:
    """What differs from one turn of a picture to the next, beside plain noise and uniform timesteps."""

    random_flip: bool = False
    noise: NoiseShape = PLAIN_NOISE
    timesteps: TimestepDensity = UNIFORM
    captions: CaptionVariants = AS_WRITTEN


NO_CHANCE = Chance()


def collate(
    turns: Sequence[Turn],
    examples: Sequence[Example],
    latents,
    texts,
    seed: int,
    num_train_timesteps: int,
    chance: Chance = NO_CHANCE,
    prior_loss_weight: float = 1.0,
) -> dict[str, torch.Tensor]:
    """What the loss takes, for turns of one bucket.

    Args:
        latents, texts: the caches, read by (index, flip) and by caption; without texts, the prompts themselves come
            as a list in place of their embeddings.
        prior_loss_weight: of class images; others weigh 1.
    Returns:
        on the CPU: latents and noise (B, C, h, w) float32, timesteps (B,) int64, prompt_embeds (B, 77 k, D) and
        pooled_embeds (B, P) in the cache's precision, time_ids (B, 6) float32, loss_weight (B,); where asked for
        also input_noise (B, C, h, w) and mask (B, 1, h, w).
    """
    rows = []
    for turn in turns:
        example = examples[turn.example]
        picture = latents.read(turn.example, chance.random_flip and draw_flip(seed, turn))
        sizes = (picture["original_size"], picture["crop_top_left"], example.target_size)
        row = {
            "latents": draw_latents(seed, turn, picture["mean"], picture["std"]),
            "noise": draw_noise(seed, turn, picture["mean"].shape, chance.noise),
            "timesteps": torch.tensor(draw_timestep(seed, turn, num_train_timesteps, chance.timesteps)),
            "time_ids": time_ids(*sizes)[0],
            "loss_weight": torch.tensor(prior_loss_weight if example.is_class_image else 1.0),
        }
        prompt = caption_in_turn(example.caption, seed, turn, chance.captions)
        row |= {"prompts": prompt} if texts is None else texts.read(prompt)
        if chance.noise.input_perturbation:
            row["input_noise"] = draw_input_noise(seed, turn, row["noise"], chance.noise.input_perturbation)
        if "mask" in picture:
            row["mask"] = picture["mask"]
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: rows if name == "prompts" else torch.stack(rows) for name, rows in columns.items()}


class Collator:
    """What `collate` takes beside the turns, and this process's place among those that share a step.

    pin: put batches into memory that a GPU copies from by itself, while the host goes on.
    """

    def __init__(self, settings: dict, rank: int, world: int, micro_steps: int, pin: bool):
        self.settings, self.rank, self.world, self.micro_steps, self.pin = settings, rank, world, micro_steps, pin

    def __call__(self, turns: Sequence[Turn]) -> dict[str, torch.Tensor | list[str]]:
        batch = collate(turns, **self.settings)
        return {
            name: value.pin_memory() if self.pin and torch.is_tensor(value) else value for name, value in batch.items()
        }

    def steps(self, steps: Iterable[tuple[int, list[Turn]]]) -> Iterator[tuple[int, list[Turn], list[tuple]]]:
        """To each step's epoch and turns, this process's micro-batches, each with whether it counts.

        Where there are too few turns for all, one that counts nothing keeps the processes in step.
        """
        for epoch, turns in steps:
            shares = share(turns, self.rank, self.world, self.micro_steps)
            yield epoch, turns, [(bool(share), self(share or turns[:1])) for share in shares]

"""Turns to the tensors of a micro-batch: cached records, the draws of chance, size conditioning."""

from collections.abc import Sequence

import torch

from sdxl_lora.batches import Turn
from sdxl_lora.data import Example, time_ids
from sdxl_lora.draws import draw_flip, draw_latents, draw_noise, draw_timestep


def collate(
    turns: Sequence[Turn],
    examples: Sequence[Example],
    latents,
    texts,
    seed: int,
    num_train_timesteps: int,
    random_flip: bool = False,
) -> dict[str, torch.Tensor]:
    """What the loss takes, for turns of one bucket.

    Args:
        latents, texts: the caches, read by (index, flip) and by caption.
    Returns:
        on the CPU: latents and noise (B, C, h, w) float32, timesteps (B,) int64, prompt_embeds (B, 77, D) and
        pooled_embeds (B, P) in the cache's precision, time_ids (B, 6) float32.
    """
    rows = []
    for turn in turns:
        example = examples[turn.example]
        picture = latents.read(turn.example, random_flip and draw_flip(seed, turn))
        sizes = (picture["original_size"], picture["crop_top_left"], example.target_size)
        rows.append(
            {
                "latents": draw_latents(seed, turn, picture["mean"], picture["std"]),
                "noise": draw_noise(seed, turn, picture["mean"].shape),
                "timesteps": torch.tensor(draw_timestep(seed, turn, num_train_timesteps)),
                "time_ids": time_ids(*sizes)[0],
                **texts.read(example.caption),
            }
        )
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

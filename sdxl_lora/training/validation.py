"""Pictures held out of training: which they are, and the loss on them at fixed timesteps with fixed noise.

Fixed, so that its course shows the learning and not the draws. Knows no config.
"""

from collections.abc import Iterable, Sequence

import torch

from sdxl_lora.data.collate import collate
from sdxl_lora.data.image_dataset import Example
from sdxl_lora.diffusion.objective import noise_prediction_loss
from sdxl_lora.rng import Turn
from sdxl_lora.training.measures import sums_by_timestep

TIMESTEPS = 4  # per picture, in the middle of equal ranges


def validation_batch(
    index: int, examples: Sequence[Example], latents, texts, seed: int, num_train_timesteps: int
) -> dict[str, torch.Tensor]:
    """One held-out picture at TIMESTEPS timesteps, as `collate` gives it.

    Its turns have epochs below 0, which no training has, so its noise is its own and always the same.
    """
    turns = [Turn(index, -1 - place) for place in range(TIMESTEPS)]
    batch = collate(turns, examples, latents, texts, seed, num_train_timesteps)
    middles = [(2 * place + 1) * num_train_timesteps // (2 * TIMESTEPS) for place in range(TIMESTEPS)]
    return {**batch, "timesteps": torch.tensor(middles)}


@torch.no_grad()
def validation_sums(unet, schedule, batches: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    """(2, TIMESTEPS): sums and numbers of the plain losses by timestep, without dropout (see `means_by_timestep`)."""
    steps = schedule.config.num_train_timesteps
    was_training = unet.training
    unet.eval()
    sums = torch.zeros(2, TIMESTEPS, device=next(unet.parameters()).device)
    try:
        for batch in batches:
            losses = noise_prediction_loss(unet, schedule, batch["latents"], batch, batch["noise"], batch["timesteps"])
            sums += sums_by_timestep(losses, batch["timesteps"], steps, TIMESTEPS)
    finally:
        unet.train(was_training)
    return sums

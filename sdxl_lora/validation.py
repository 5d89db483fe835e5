"""Pictures held out of training: which they are, and the loss on them at fixed timesteps with fixed noise.

Fixed, so that its course shows the learning and not the draws. Knows no config.
"""

from collections.abc import Iterable, Sequence

import torch

from sdxl_lora.batches import Turn, keyed_seed
from sdxl_lora.collate import collate
from sdxl_lora.data import Example
from sdxl_lora.errors import ConfigError
from sdxl_lora.measures import sums_by_timestep
from sdxl_lora.objective import noise_prediction_loss

TIMESTEPS = 4  # per picture, in the middle of equal ranges


def held_out(examples: Sequence[Example], share: float, seed: int) -> list[int]:
    """Indices of the examples that no step may train on: about `share` of their sources, at least one.

    Crops and copies of one source are all in or all out, else what is trained would be what is measured. Class images
    always train.

    Raises:
        ConfigError: no source would be left to train on.
    """
    sources = {example.source for example in examples if not example.is_class_image}
    in_both = {example.source for example in examples if example.is_class_image}
    order = sorted(sources - in_both, key=lambda source: keyed_seed(seed, "validation", source))
    count = max(1, round(share * len(order)))
    if count >= len(order):
        raise ConfigError(f"validation_split {share} leaves nothing to train on: there are {len(order)} pictures")
    chosen = set(order[:count])
    return [index for index, example in enumerate(examples) if example.source in chosen]


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

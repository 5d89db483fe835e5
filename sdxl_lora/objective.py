"""The training loss: what the UNet predicts for noisy latents, against what it should have.

No randomness, no config: noise and timesteps come in, a loss per picture goes out.
"""

import torch
import torch.nn.functional as F


def noise_prediction_loss(unet, schedule, latents, conditions, noise, timesteps):
    """Mean squared error of the UNet's prediction, per picture (arXiv:2006.11239, eq. 14; v: arXiv:2202.00512).

    Args:
        unet: called as `unet(noisy, timesteps, encoder_hidden_states=..., added_cond_kwargs=...).sample`.
        schedule: a DDPMScheduler; its prediction_type says what the UNet predicts.
        latents: (B, C, h, w) float32, scaled by the VAE's scaling_factor.
        conditions: prompt_embeds (B, 77, D), pooled_embeds (B, P), time_ids (B, 6).
        noise: (B, C, h, w) float32, standard normal.
        timesteps: (B,) int64 in [0, num_train_timesteps).
    Returns:
        (B,) float32.
    Raises:
        ValueError: the schedule predicts something else than epsilon, v_prediction or sample.
    """
    noisy_latents = schedule.add_noise(latents, noise, timesteps)
    prediction = unet(
        noisy_latents,
        timesteps,
        encoder_hidden_states=conditions["prompt_embeds"],
        added_cond_kwargs={"text_embeds": conditions["pooled_embeds"], "time_ids": conditions["time_ids"]},
    ).sample
    target = prediction_target(schedule, latents, noise, timesteps)
    return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)


def prediction_target(schedule, latents, noise, timesteps) -> torch.Tensor:
    """(B, C, h, w): what a perfect UNet of this schedule predicts."""
    prediction_type = schedule.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return schedule.get_velocity(latents, noise, timesteps)
    if prediction_type == "sample":
        return latents
    raise ValueError(f"prediction_type is {prediction_type!r}, it must be epsilon, v_prediction or sample")

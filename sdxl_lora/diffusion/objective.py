"""Training loss: the UNet's prediction for noisy latents against its target.

No randomness: takes noise and timesteps, returns a loss per image.
"""

import torch
import torch.nn.functional as F

from sdxl_lora.config.sections.objective import ObjectiveConfig
from sdxl_lora.diffusion.flow import FLOW, FlowSchedule

MIN_SNR = 1e-3  # SDXL's noisiest step has 0.005; below this, noise carries no image, and dividing by 0 gives NaN


PLAIN = ObjectiveConfig()


def noise_prediction_loss(
    unet, schedule, latents, conditions, noise, timesteps, objective: ObjectiveConfig = PLAIN, target=None
):
    """Return the loss of the UNet's prediction per image (arXiv:2006.11239, eq. 14; v: arXiv:2202.00512).

    Args:
        unet: called as `unet(noisy, timesteps, encoder_hidden_states=..., added_cond_kwargs=...).sample`.
        schedule: a DDPMScheduler or FlowSchedule; its prediction_type is what the UNet predicts.
        latents: (B, C, h, w) float32, in the UNet's scale (latents.py).
        conditions: prompt_embeds (B, 77 k, D), pooled_embeds (B, P), time_ids (B, 6); optionally input_noise
            (B, C, h, w), mixed into the latents in place of `noise` (input perturbation), mask (B, 1, h, w) in [0, 1],
            the area where the loss counts, and loss_weight (B,).
        noise: (B, C, h, w) float32, standard normal.
        timesteps: (B,) int64 in [0, num_train_timesteps).
        target: (B, C, h, w), the prediction to learn; None for that of a perfect UNet of this schedule.
    Returns:
        (B,) float32.
    Raises:
        ValueError: the schedule predicts something else than epsilon, v_prediction, flow or sample.
    """
    prediction = predict(unet, schedule, latents, conditions, noise, timesteps)
    if target is None:
        target = prediction_target(schedule, latents, noise, timesteps)
    c = huber_scale(schedule, timesteps, objective.huber_c, objective.huber_schedule)
    losses = masked_mean(elementwise_loss(prediction.float(), target.float(), objective.loss_type, c), conditions)
    if objective.snr_gamma is not None or objective.debiased_estimation:
        snr = snr_of(schedule, timesteps)
        losses = losses * snr_weights(snr, schedule.config.prediction_type, objective.snr_gamma)
    return losses * conditions.get("loss_weight", 1.0)


def predict(unet, schedule, latents, conditions, noise, timesteps) -> torch.Tensor:
    """Return the UNet's prediction (B, C, h, w) for the noisy latents; arguments as of `noise_prediction_loss`."""
    noisy_latents = schedule.add_noise(latents, conditions.get("input_noise", noise), timesteps)
    return unet(
        noisy_latents,
        times_of(schedule, timesteps),
        encoder_hidden_states=conditions["prompt_embeds"],
        added_cond_kwargs={"text_embeds": conditions["pooled_embeds"], "time_ids": conditions["time_ids"]},
    ).sample


def times_of(schedule, timesteps) -> torch.Tensor:
    """Return the UNet's timestep input (B,): the timesteps themselves, except for a flow."""
    return schedule.times(timesteps) if isinstance(schedule, FlowSchedule) else timesteps


def prediction_target(schedule, latents, noise, timesteps) -> torch.Tensor:
    """Return the prediction (B, C, h, w) of a perfect UNet of this schedule."""
    prediction_type = schedule.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type in ("v_prediction", FLOW):
        return schedule.get_velocity(latents, noise, timesteps)
    if prediction_type == "sample":
        return latents
    raise ValueError(f"prediction_type is {prediction_type!r}, it must be epsilon, v_prediction, flow or sample")


def elementwise_loss(prediction, target, loss_type="l2", c=1.0) -> torch.Tensor:
    """Return the loss (B, C, h, w) of the error d = prediction - target: squared, or growing linearly for large errors.

    "huber" and "smooth_l1" are pseudo-Huber losses (arXiv:2403.16728): 2 c (sqrt(d^2 + c^2) - c) is d^2 for d far
    below c, and 2 c |d| far above; "smooth_l1" is that divided by c, so 2 |d| far above.

    Args:
        c: the transition between the two; a number or (B, 1, 1, 1).
    """
    if loss_type == "l2":
        return F.mse_loss(prediction, target, reduction="none")
    bounded = 2 * (((prediction - target) ** 2 + c**2).sqrt() - c)
    if loss_type == "huber":
        return bounded * c
    if loss_type == "smooth_l1":
        return bounded
    raise ValueError(f"loss_type is {loss_type!r}, it must be l2, huber or smooth_l1")


def huber_scale(schedule, timesteps, huber_c, huber_schedule) -> torch.Tensor:
    """Return the c (B, 1, 1, 1) of pseudo-Huber losses at each timestep (arXiv:2403.16728, section 3.3).

    "constant": huber_c. "exponential": from 1 at timestep 0 down to huber_c. "snr": huber_c + (1 - huber_c) /
    (1 + sigma)^2, where sigma is the noise's strength relative to the image's.
    """
    if huber_schedule == "constant":
        c = torch.full(timesteps.shape, huber_c, device=timesteps.device)
    elif huber_schedule == "exponential":
        c = huber_c ** (timesteps / schedule.config.num_train_timesteps)
    elif huber_schedule == "snr":
        sigma = snr_of(schedule, timesteps).clamp(min=MIN_SNR) ** -0.5
        c = huber_c + (1 - huber_c) / (1 + sigma) ** 2
    else:
        raise ValueError(f"huber_schedule is {huber_schedule!r}, it must be constant, exponential or snr")
    return c.reshape(-1, 1, 1, 1)


def masked_mean(losses, conditions) -> torch.Tensor:
    """Return the mean (B,) over the image, or over the mask's area: a small mask weighs as much as a large one."""
    if "mask" not in conditions:
        return losses.flatten(1).mean(1)
    mask = conditions["mask"].expand_as(losses)
    return (losses * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def snr_of(schedule, timesteps) -> torch.Tensor:
    """Return the image's variance over the noise's (B,); 0 at the end of a schedule with zero terminal SNR."""
    if isinstance(schedule, FlowSchedule):
        return schedule.snr(timesteps)
    kept = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    return kept / (1 - kept)


def snr_weights(snr, prediction_type, snr_gamma=None) -> torch.Tensor:
    """Return weights (B,) that turn each timestep's loss into a weighted error of the image itself.

    That error is the error of epsilon divided by SNR, or of v divided by SNR + 1. min-SNR weights it by
    min(SNR, snr_gamma) (arXiv:2303.09556), debiased estimation, without a gamma, by sqrt(SNR) (arXiv:2310.08442). So a
    timestep of pure noise (SNR 0) has weight 0 for v; for epsilon, which carries no image there, SNR is taken as
    MIN_SNR.

    Args:
        snr: (B,), see `snr_of`.
        snr_gamma: None for debiased estimation.
    """
    per_image_error = {
        "epsilon": snr.clamp(min=MIN_SNR),
        "v_prediction": snr + 1,
        "sample": torch.ones_like(snr),
    }[prediction_type]
    if prediction_type == "epsilon":
        snr = snr.clamp(min=MIN_SNR)
    return (snr.sqrt() if snr_gamma is None else snr.clamp(max=snr_gamma)) / per_image_error

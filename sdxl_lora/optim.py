"""Optimizers by name, and the learning rate of a step."""

import math

import torch

from sdxl_lora.errors import ConfigError


def make_optimizer(name, parameters, learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, epsilon=1e-8):
    """The optimizer `name` over float32 parameters.

    "adamw" is torch's, fused (over a thousand small tensors it costs a third of the default's host time);
    "adamw8bit", "lion" and "lion8bit" are bitsandbytes'. Lion has no epsilon.

    Raises:
        ConfigError: an unknown name, or bitsandbytes does not load.
    """
    arguments = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(parameters, eps=epsilon, fused=True, **arguments)
    try:
        import bitsandbytes
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"optimizer {name} needs bitsandbytes: pip install bitsandbytes ({error})") from None
    if name == "adamw8bit":
        return bitsandbytes.optim.AdamW8bit(parameters, eps=epsilon, **arguments)
    if name == "lion":
        return bitsandbytes.optim.Lion(parameters, **arguments)
    if name == "lion8bit":
        return bitsandbytes.optim.Lion8bit(parameters, **arguments)
    raise ConfigError(f"optimizer is {name!r}, it must be adamw, adamw8bit, lion or lion8bit")


def learning_rate_at(step, total_steps, peak, scheduler="constant", warmup_steps=0, num_cycles=1, power=1.0) -> float:
    """The learning rate of optimizer step `step` (0 is the first), as diffusers' schedules of these names.

    A pure function of the step, so resuming and the number of processes cannot shift it.

    Raises:
        ConfigError: an unknown scheduler.
    """
    if scheduler == "constant":
        return peak
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if scheduler == "constant_with_warmup":
        return peak
    if scheduler == "linear":
        return peak * max(0.0, 1 - progress)
    if scheduler == "cosine":
        return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    if scheduler == "cosine_with_restarts":
        return 0.0 if progress >= 1 else peak * 0.5 * (1 + math.cos(math.pi * (progress * num_cycles % 1)))
    if scheduler == "polynomial":
        end = min(1e-7, peak)
        return end if progress >= 1 else (peak - end) * (1 - progress) ** power + end
    raise ConfigError(f"lr_scheduler is {scheduler!r}, which is not a schedule")


def set_learning_rate(optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate

"""Optimizers by name, their parameter groups, and the learning rate of each step."""

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdxl_lora.config.checks import PRODIGIES
from sdxl_lora.config.sections.optimizer import OptimizerConfig
from sdxl_lora.config.unet_blocks import check_blocks, parse_blocks, value_of
from sdxl_lora.errors import ConfigError
from sdxl_lora.lora.state import adapter_parameters

# name: (module, class, pip package)
CLASSES = {
    "adamw": ("torch.optim", "AdamW", "torch"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "paged_adamw8bit": ("bitsandbytes.optim", "PagedAdamW8bit", "bitsandbytes"),
    "lion": ("bitsandbytes.optim", "Lion", "bitsandbytes"),
    "lion8bit": ("bitsandbytes.optim", "Lion8bit", "bitsandbytes"),
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    "prodigy_plus_schedule_free": ("prodigyplus", "ProdigyPlusScheduleFree", "prodigy-plus-schedule-free"),
    "adafactor": ("transformers.optimization", "Adafactor", "transformers"),
    "schedule_free_adamw": ("schedulefree", "AdamWScheduleFree", "schedulefree"),
    "came": ("pytorch_optimizer", "CAME", "pytorch-optimizer"),
    "adopt": ("pytorch_optimizer", "ADOPT", "pytorch-optimizer"),
    "muon": ("torch.optim", "Muon", "torch>=2.9"),
}
CAME_BETA3 = 0.9999  # of its third average, which Adam lacks


def make_optimizer(
    name, parameters, learning_rate: float | None, betas=(0.9, 0.999), weight_decay=1e-2, epsilon=1e-8, arguments=None
) -> torch.optim.Optimizer:
    """Return the optimizer `name` over float32 parameters or groups of them.

    torch's AdamW is fused: over a thousand small tensors it costs a third of the default's host time. Lion has no
    epsilon; CAME, ADOPT and Muon have epsilons of another meaning or size; Adafactor and Muon have no betas. Adafactor
    takes the learning rate as it stands, Muon scales it to match AdamW's (arXiv:2502.16982, section 2.2).

    Args:
        name: one of CLASSES, or any other "module.Class", which gets only the learning rate and `arguments`.
        learning_rate: None for the optimizer's own: Adafactor's relative step, or the class's default.
        arguments: more arguments of the class by name; they override the others.
    Raises:
        ConfigError: an unknown name, a library that does not load, or arguments that the class rejects.
    """
    own = own_arguments(name, betas, weight_decay, epsilon)
    if name in PRODIGIES and learning_rate is not None and 0 < learning_rate < 0.1:
        warnings.warn(
            f"Prodigy finds the learning rate itself and multiplies it by --learning_rate, which is {learning_rate}: "
            "1 is usual",
            stacklevel=2,
        )
    if learning_rate is not None or name == "adafactor":
        own["lr"] = learning_rate
    optimizer_class = load_optimizer_class(name)
    try:
        return optimizer_class(parameters, **{**own, **(arguments or {})})
    except Exception as error:  # optimizers raise every kind
        hint = ": give --learning_rate None, it has one of its own" if "argument 'lr'" in str(error) else ""
        raise ConfigError(f"optimizer {name} does not take {arguments or 'these settings'}: {error}{hint}") from error


def own_arguments(name: str, betas: tuple[float, float], weight_decay: float, epsilon: float) -> dict[str, Any]:
    """Return Adam's settings under this class's names, with flags that give them the same meaning."""
    decay, adams = {"weight_decay": weight_decay}, {"betas": betas, "weight_decay": weight_decay}
    special: dict[str, dict[str, Any]] = {
        "adamw": {**adams, "eps": epsilon, "fused": True},
        "lion": adams,
        "lion8bit": adams,
        "prodigy_plus_schedule_free": {**adams, "eps": epsilon, "split_groups": False},  # one rate, like Prodigy
        "adafactor": {**decay, "scale_parameter": False, "relative_step": False},
        "came": {**decay, "betas": (*betas, CAME_BETA3)},
        "adopt": {**adams, "weight_decouple": True},
        "muon": {**decay, "adjust_lr_fn": "match_rms_adamw"},
    }
    return special.get(name, {**adams, "eps": epsilon} if name in CLASSES else {})


def load_optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    module, _, class_name = name.rpartition(".")
    if name in CLASSES:
        module, class_name, package = CLASSES[name]
    elif not module:
        raise ConfigError(f"optimizer is {name!r}, it must be one of {', '.join(CLASSES)}, or module.Class")
    else:
        package = module.split(".")[0]
    try:
        found = getattr(importlib.import_module(module), class_name, None)
    except Exception as error:  # a broken library may raise any kind
        raise ConfigError(f"optimizer {name} needs {package}: pip install {package} ({error})") from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer is {name!r}, but {module} has no optimizer {class_name}")
    return found


def parameter_groups(
    named: Mapping[str, nn.Parameter],
    lora_plus_ratio: float | None = None,
    factors: Mapping[str, float] | None = None,
) -> list[dict]:
    """Return an optimizer's parameter groups. A group's lr_factor multiplies the learning rate of each step.

    Args:
        named: parameters by name (lora.state.adapter_parameters).
        lora_plus_ratio: learning rate of lora_B, which starts at 0, over that of the rest (LoRA+, arXiv:2402.12354).
        factors: each parameter's lr_factor before LoRA+, by name; None for 1.
    Raises:
        ConfigError: a ratio without any lora_B.
    """
    if lora_plus_ratio is not None and not any(".lora_B" in name for name in named):
        raise ConfigError("lora_plus_ratio is for LoRA's two matrices: leave it out with other kinds of adapters")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        factor = 1.0 if factors is None else factors[name]
        if lora_plus_ratio is not None and ".lora_B" in name:
            factor *= lora_plus_ratio
        groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "lr_factor": factor} for factor, parameters in groups.items()]


def learning_rate_at(
    step, total_steps, peak, scheduler="constant", warmup_steps=0, num_cycles=1, power=1.0, decay_share=0.2
) -> float:
    """Return the learning rate of optimizer step `step` (0 is the first).

    The schedules are diffusers' of the same names, rex (arXiv:2107.04197), and wsd: constant, then 1 - sqrt over the
    last `decay_share` of all steps (arXiv:2405.18392). The rate is a pure function of the step, so resuming and the
    number of processes cannot shift it.

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
    if scheduler == "rex":
        left = max(0.0, 1 - progress)
        return peak * left / (0.5 + 0.5 * left)
    if scheduler == "wsd":
        decay_steps = min(max(1, round(decay_share * total_steps)), max(1, total_steps - warmup_steps))
        decayed = (step - (total_steps - decay_steps)) / decay_steps
        return peak * max(0.0, 1 - math.sqrt(max(0.0, decayed)))
    raise ConfigError(f"lr_scheduler is {scheduler!r}, which is not a schedule")


def set_learning_rate(optimizer, learning_rate: float | None, step: int = 0) -> None:
    """Give each group the rate times its lr_factor (see `parameter_groups`), and 0 from its end_step on, if any.

    None leaves the optimizer's own rates.
    """
    if learning_rate is None:
        return
    for group in optimizer.param_groups:
        has_ended = group.get("end_step") is not None and step >= group["end_step"]
        group["lr"] = 0.0 if has_ended else learning_rate * group.get("lr_factor", 1.0)


def build_optimizer(config: OptimizerConfig, model, total_steps: int, accelerator):
    """Return the optimizer over the adapters of a LoraModel, prepared by Accelerate.

    Raises:
        ConfigError: blocks without parameters, or settings that the optimizer rejects.
    """
    rates, groups = rates_of_components(config, total_steps), []
    for name, component in model.components.items():
        for group in groups_of(config, name, component):
            groups.append({**group, **rates[name], "lr_factor": group["lr_factor"] * rates[name]["lr_factor"]})
    optimizer = accelerator.prepare(optimizer_of(config, groups))
    optimizer.train()
    return optimizer


def groups_of(config: OptimizerConfig, name: str, component: nn.Module) -> list[dict]:
    """Return the groups of one component's adapter; ConfigError for a block of the UNet without parameters."""
    parameters = adapter_parameters(component)
    factors = block_factors(config, parameters) if name == "unet" else None
    return parameter_groups(parameters, config.lora_plus_ratio, factors)


def optimizer_of(config: OptimizerConfig, groups: list[dict]) -> torch.optim.Optimizer:
    return make_optimizer(
        config.name,
        groups,
        config.learning_rate,
        (config.adam_beta1, config.adam_beta2),
        config.adam_weight_decay,
        config.adam_epsilon,
        config.arguments,
    )


def rates_of_components(config: OptimizerConfig, total_steps: int) -> dict[str, dict]:
    """Return each model's learning rate factor and the step that ends its training."""
    end_step = None
    if config.stop_text_encoder_training is not None:
        end_step = round(config.stop_text_encoder_training * total_steps)
    base = config.learning_rate or 1.0
    first = second = base  # an optimizer's own rate serves all
    if config.learning_rate is not None:
        first = config.learning_rate if config.text_encoder_lr is None else config.text_encoder_lr
        second = first if config.text_encoder_2_lr is None else config.text_encoder_2_lr
    return {
        "unet": {"lr_factor": 1.0, "end_step": None},
        "text_encoder": {"lr_factor": first / base, "end_step": end_step},
        "text_encoder_2": {"lr_factor": second / base, "end_step": end_step},
    }


def block_factors(config: OptimizerConfig, modules: Iterable[str]) -> dict[str, float]:
    """Return the learning rate factor of each UNet parameter by name; ConfigError for an empty block."""
    factors, modules = parse_blocks(config.block_lr_factors, float), list(modules)
    try:
        check_blocks(factors, modules)
    except ValueError as error:
        raise ConfigError(f"block_lr_factors: {error}") from None
    return {module: value_of(module, factors, 1.0) for module in modules}


def learning_rate_of(config: OptimizerConfig, step: int, total_steps: int, images_per_step: int) -> float | None:
    """Return the learning rate of step `step` (0 is the first) before the groups' factors.

    None where the optimizer finds its own.
    """
    if config.learning_rate is None:
        return None
    return learning_rate_at(
        step,
        total_steps,
        config.learning_rate * (images_per_step if config.scale_lr else 1),
        config.lr_scheduler,
        config.lr_warmup_steps,
        config.lr_num_cycles,
        config.lr_power,
        config.lr_decay_share,
    )


@contextmanager
def rates_kept(optimizer) -> Iterator[None]:
    """Restore the groups' rates after the context: a resumed run may have other settings."""
    rates = [{name: group[name] for name in ("lr_factor", "end_step")} for group in optimizer.param_groups]
    yield
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group.update(rate)


def own_learning_rate(optimizer) -> float:
    """Return the first parameter's rate for an optimizer that finds its own; NaN where it does not tell."""
    group = optimizer.param_groups[0]
    if group.get("lr") is not None:
        return float(group["lr"])
    inner = getattr(optimizer, "optimizer", optimizer)
    state = inner.state.get(group["params"][0])
    return float(inner._get_lr(group, state)) if state and hasattr(inner, "_get_lr") else math.nan

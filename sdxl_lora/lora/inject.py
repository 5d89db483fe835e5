"""Add adapters to a model: LoRA, DoRA, LoHa, LoKr. Knows no optimizer, no config and no files."""

import functools
from collections.abc import Callable

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sdxl_lora.lora.dropout import add_dropout
from sdxl_lora.lora.state import ADAPTER, adapter_parameters, remember_start
from sdxl_lora.lora.targets import target_modules
from sdxl_lora.models.base_source import Model


def add_lora(
    model: Model,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str = "attention",
    seed: int = 0,
    *,
    kind: str = "lora",
    init: str = "kaiming",
    rank_dropout: float = 0.0,
    module_dropout: float = 0.0,
    lokr_factor: int = -1,
    use_rslora: bool = False,
    use_dora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
) -> list[nn.Parameter]:
    """Freeze `model` (UNet2DConditionModel or a CLIP text model) and add an adapter to its `targets`.

    Args:
        rank, alpha: strength is alpha / rank, with `use_rslora` alpha / sqrt(rank) (arXiv:2312.03732).
        dropout: of a LoRA's input, in [0, 1).
        targets: one of TARGETS, or a regular expression over module names (see `target_modules`).
        seed: of the adapter's initial values; the caller's random state is left unchanged.
        kind: "lora", "loha" or "lokr"; `dropout`, `init`, `use_rslora` and `use_dora` apply to LoRA only.
        init: "kaiming" (Kaiming-uniform down, zero up), or PEFT's "gaussian", "orthogonal", "pissa", "pissa_niter_<n>"
            or "olora"; the last three move a part of the base's weights into the LoRA (see `changes_base`).
        rank_dropout, module_dropout: in [0, 1), see dropout.py; PEFT's own for LoHa and LoKr.
        lokr_factor: size of LoKr's first factors; -1 for the most balanced split.
        use_dora: trains each output's magnitude apart from its direction (arXiv:2402.09353).
        rank_pattern, alpha_pattern: other values for modules whose name ends in a key (a regular expression).
    Returns:
        The trainable parameters, all float32 whatever the base's dtype, in the model's order.
    Raises:
        ValueError: a value is out of range, `targets` matches nothing or a forbidden layer, the model has an adapter
            already, or `init` is not possible.
    """
    if rank < 1 or alpha <= 0 or not all(0 <= share < 1 for share in (dropout, rank_dropout, module_dropout)):
        raise ValueError(
            f"rank {rank}, alpha {alpha}, dropout {dropout}, rank_dropout {rank_dropout}, module_dropout "
            f"{module_dropout}: need rank >= 1, alpha > 0, 0 <= dropout < 1."
        )
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} has an adapter already: load the base model again.")
    names = target_modules(model, targets)
    _check_start(model, names, init, use_dora)
    patterns = {"rank_pattern": rank_pattern or {}, "alpha_pattern": alpha_pattern or {}}
    size = {"r": rank, "target_modules": names, **patterns}
    of_lora = {"lora_dropout": dropout, "init_lora_weights": init, "use_rslora": use_rslora, "use_dora": use_dora}
    of_lycoris = {"rank_dropout": rank_dropout, "module_dropout": module_dropout}
    config = _peft_config(kind, alpha, size, of_lora, of_lycoris, lokr_factor)
    parameters = _add_adapter(model, config, seed)
    if changes_base(init):
        remember_start(model)
    if kind == "lora":
        add_dropout(model, rank_dropout, module_dropout)
    wrapped = sum(isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer") for module in model.modules())
    assert wrapped == len(names), f"PEFT wrapped {wrapped} of {len(names)} layers"
    return list(parameters.values())


def _add_adapter(model: Model, config: PeftConfig, seed: int) -> dict[str, nn.Parameter]:
    """Add the adapter and return its parameters, in float32 and the only ones that train."""
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # PEFT draws initial values on the CPU
        torch.manual_seed(seed)
        model.add_adapter(config, adapter_name=ADAPTER)
    parameters = adapter_parameters(model)
    for parameter in parameters.values():
        parameter.data = parameter.data.float()  # PEFT gives them the base's dtype; bf16 loses small updates
        parameter.requires_grad_(True)
    return parameters


def _peft_config(kind: str, alpha: float, size: dict, of_lora: dict, of_lycoris: dict, lokr_factor: int) -> PeftConfig:
    """Return PEFT's config of the adapter; raise ValueError for an option that the kind lacks."""
    if kind == "lora":
        start = {"init_lora_weights": True} if of_lora["init_lora_weights"] == "kaiming" else {}
        return LoraConfig(lora_alpha=alpha, **size, **{**of_lora, **start})
    if tuple(of_lora.values()) != (0.0, "kaiming", False, False):
        raise ValueError(f"dropout, init, use_rslora and use_dora belong to kind lora: leave them out with {kind}.")
    return _lycoris_config(kind, lokr_factor)(alpha=alpha, **size, **of_lycoris)


def _lycoris_config(kind: str, lokr_factor: int) -> Callable[..., PeftConfig]:
    configs = {"loha": LoHaConfig, "lokr": functools.partial(LoKrConfig, decompose_factor=lokr_factor)}
    if kind not in configs:
        raise ValueError(f"kind {kind!r} must be one of lora, loha, lokr.")
    return configs[kind]


def changes_base(init: str) -> bool:
    """Return whether an adapter starts as the principal directions of the base's weights, which lose them.

    A LoRA file still holds the change of the original base: the trained adapter minus the initial one, at twice the
        rank.
    """
    return init.startswith(("pissa", "olora"))


def _check_start(model: nn.Module, names: list[str], init: str, use_dora: bool) -> None:
    if init in ("kaiming", "gaussian"):
        return
    layers = dict(model.named_modules())
    if convolutions := [name for name in names if not isinstance(layers[name], nn.Linear)]:
        raise ValueError(f"init {init} is for linear layers, {convolutions[0]} is a convolution: choose other targets.")
    if changes_base(init) and use_dora:
        raise ValueError(f"init {init} does not go with use_dora, whose change depends on the base: use kaiming.")
    if changes_base(init) and not all(layers[name].weight.is_floating_point() for name in names):
        raise ValueError(f"init {init} changes the base's weights and needs them unquantised: use kaiming.")

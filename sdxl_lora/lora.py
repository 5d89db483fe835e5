"""Adds adapters to a model and takes their weights out and in. Knows no optimizer.

`add_lora`, then training; `lora_state` is exact, for resuming; lora_files.py writes what clients load.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.lokr import LoKrLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sdxl_lora.blocks import check_blocks, value_of
from sdxl_lora.lora_keys import NEVER, TARGETS, canonical, is_target
from sdxl_lora.lora_math import Adapter

ADAPTER = "default"
LYCORIS_NAME = {"lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "dora_scale"}
ADAPTER_TENSOR = re.compile(rf"\.(lora_|hada_|lokr_)\w+\.{ADAPTER}(\.weight)?$")


def target_modules(model: nn.Module, targets: str) -> list[str]:
    """Full names of the modules that `targets` means, in the model's order.

    Args:
        targets: one of TARGETS, or a regular expression searched in the names of linear and convolution layers.
    Raises:
        ValueError: not a regular expression, nothing matched, or it matched a layer that must stay as it is.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    if targets in TARGETS:
        return [name for name, layer in layers.items() if is_target(name, targets, isinstance(layer, nn.Linear))]
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ValueError(
            f"targets {targets!r} is none of {', '.join(TARGETS)} and not a regular expression ({error})."
        ) from None
    names = [name for name in layers if pattern.search(name)]
    example = next((name for name in layers if is_target(name, "attention", True)), "")
    if not names:
        raise ValueError(
            f"targets {targets!r} matches no linear or convolution layer of {type(model).__name__}: "
            f"use one of {', '.join(TARGETS)}, or an expression over names such as {example}."
        )
    if never := [name for name in names if NEVER.search(name)]:
        raise ValueError(
            f"targets {targets!r} matches {', '.join(never)}: LoRA files with these layers fail in clients. "
            f"Make the expression narrower, for example by starting it with ^(down|mid|up)_block."
        )
    return names


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str = "attention",
    seed: int = 0,
    *,
    kind: str = "lora",
    init: bool | str = True,
    use_rslora: bool = False,
    use_dora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
) -> list[nn.Parameter]:
    """Freezes `model` (UNet2DConditionModel or a CLIP text model) and adds a LoRA to its `targets`.

    Args:
        rank, alpha: strength is alpha / rank, with `use_rslora` alpha / sqrt(rank) (arXiv:2312.03732).
        dropout: of the adapter's input, in [0, 1); of LoHa's and LoKr's rows.
        targets: one of TARGETS, or a regular expression over module names (see `target_modules`).
        seed: of the adapter's start values; the caller's random state is left as it was.
        kind: "lora", "loha" or "lokr"; the options below but the patterns belong to LoRA alone.
        init: True (Kaiming-uniform down, zero up), "gaussian" or "orthogonal" (PEFT's `init_lora_weights`).
        use_dora: trains each output's length apart from its direction (arXiv:2402.09353).
        rank_pattern, alpha_pattern: other values for modules whose name ends in a key (a regular expression).
    Returns:
        The trainable parameters, all float32 whatever the base's dtype, in the model's order.
    Raises:
        ValueError: a value is out of range, `targets` matches nothing or a forbidden layer, or an adapter is there.
    """
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(f"rank {rank}, alpha {alpha}, dropout {dropout}: need rank >= 1, alpha > 0, 0 <= dropout < 1.")
    if init not in (True, "gaussian", "orthogonal"):
        raise ValueError(
            f"init {init!r} changes the base's weights, which a LoRA file cannot say: use gaussian or True."
        )
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} has an adapter already: load the base model anew.")
    names = target_modules(model, targets)
    patterns = {"rank_pattern": rank_pattern or {}, "alpha_pattern": alpha_pattern or {}}
    lora_options = {"init_lora_weights": init, "use_rslora": use_rslora, "use_dora": use_dora}
    config = _peft_config(kind, names, rank, alpha, dropout, patterns, lora_options)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # PEFT draws start values on the CPU
        torch.manual_seed(seed)
        model.add_adapter(config, adapter_name=ADAPTER)
    parameters = adapter_parameters(model)
    for parameter in parameters.values():
        parameter.data = parameter.data.float()  # PEFT gives them the base's dtype; bf16 loses small updates
        parameter.requires_grad_(True)
    wrapped = sum(isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer") for module in model.modules())
    assert wrapped == len(names), f"PEFT wrapped {wrapped} of {len(names)} layers"
    return list(parameters.values())


def _peft_config(
    kind: str, names: list[str], rank: int, alpha: float, dropout: float, patterns: dict, lora_options: dict
) -> PeftConfig:
    if kind == "lora":
        return LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, **patterns, **lora_options
        )
    configs = {"loha": LoHaConfig, "lokr": LoKrConfig}
    if kind not in configs:
        raise ValueError(f"kind {kind!r} must be one of lora, loha, lokr.")
    if lora_options != {"init_lora_weights": True, "use_rslora": False, "use_dora": False}:
        raise ValueError(f"init, use_rslora and use_dora belong to kind lora: leave them out with {kind}.")
    return configs[kind](r=rank, alpha=alpha, rank_dropout=dropout, target_modules=names, **patterns)


def layers_with_ranks(
    names: Iterable[str], rank: int, alpha: float, block_ranks: Mapping[str, int], use_rslora: bool = False
) -> dict[str, tuple[int, float]]:
    """(rank, alpha) of each of a UNet's modules, those of blocks with rank 0 left out.

    alpha / rank is the same in all of them; with `use_rslora`, which divides by the root of the rank, alpha is.

    Raises:
        ValueError: a block holds none of the modules, or none is left.
    """
    names = list(names)
    check_blocks(block_ranks, names)
    ranks = {name: value_of(name, block_ranks, rank) for name in names}
    layers = {name: (r, alpha if use_rslora else alpha * r / rank) for name, r in ranks.items() if r}
    if not layers:
        raise ValueError("block_ranks leaves nothing of the UNet to train: give a block a rank above 0.")
    return layers


def exactly(layers: Mapping[str, tuple[int, float]]) -> dict:
    """The arguments of `add_lora` for just these modules, each with its own (rank, alpha)."""

    def by_value(place: int) -> dict:
        """{value: expression that matches its modules}, the most frequent value first."""
        count = Counter(values[place] for values in layers.values())
        return {
            value: "|".join(re.escape(name) for name, values in layers.items() if values[place] == value)
            for value, _ in count.most_common()
        }

    (rank, _), *ranks = by_value(0).items()
    (alpha, _), *alphas = by_value(1).items()
    return {
        "rank": rank,
        "alpha": alpha,
        "targets": f"^({'|'.join(map(re.escape, layers))})$",
        "rank_pattern": {names: value for value, names in ranks},
        "alpha_pattern": {names: value for value, names in alphas},
    }


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by PEFT's name without the adapter's (`….to_q.lora_A.weight`), in the model's order."""
    return {
        name.replace(f".{ADAPTER}", ""): parameter
        for name, parameter in model.named_parameters()
        if ADAPTER_TENSOR.search(name)
    }


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the adapter's tensors on the CPU, float32, alpha not multiplied in: exactly what training holds."""
    return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in adapter_parameters(model).items()}


def load_lora_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts back what `lora_state` gave; the model's adapter must have the same modules and ranks.

    Raises:
        ValueError: names are missing, left over, or of another shape. Nothing is changed then.
    """
    parameters = adapter_parameters(model)
    wrong = [f"missing {name}" for name in parameters if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in parameters]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, the model needs {tuple(p.shape)}"
        for name, p in parameters.items()
        if name in state and state[name].shape != p.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"the saved LoRA does not fit this model: {'; '.join(wrong[:5])}{more}. "
            "Use the same targets, rank and base as when it was saved."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def adapter_layers(model: nn.Module, component: str) -> dict[str, BaseTunerLayer]:
    """PEFT's layers by canonical module name (lora_keys.py).

    Raises:
        ValueError: the model has no adapter, or one on a module that no LoRA file can name.
    """
    layers = {
        canonical(component, name): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and ADAPTER in module.r
    }
    if not layers:
        raise ValueError(f"the {component} has no adapter to save: call add_lora first.")
    return layers


def module_adapter(layer: BaseTunerLayer) -> Adapter:
    """A layer's adapter under LyCORIS names, alpha included, as float32 copies on the CPU."""
    rank = layer.r[ADAPTER]
    alpha = layer.scaling[ADAPTER] * rank  # PEFT's scaling is alpha / r, or with rsLoRA alpha / sqrt(r)
    tensors = {}
    for attribute in layer.adapter_layer_names:
        if ADAPTER in getattr(layer, attribute):
            tensor = getattr(layer, attribute)[ADAPTER]
            tensor = getattr(tensor, "weight", tensor)
            tensors[LYCORIS_NAME.get(attribute, attribute)] = tensor.detach().to("cpu", torch.float32, copy=True)
    if "dora_scale" in tensors:
        tensors["dora_scale"] = tensors["dora_scale"].reshape(-1, *[1] * (tensors["lora_down"].dim() - 1))
    if isinstance(layer, LoKrLayer) and not {"lokr_w1_b", "lokr_w2_b"} & set(tensors):
        tensors["lokr_w1"] *= alpha / rank  # LyCORIS gives two whole factors strength 1
        alpha = 1.0
    return Adapter(tensors, alpha)

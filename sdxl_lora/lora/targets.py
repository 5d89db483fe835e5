"""Target modules of an adapter, and their ranks and alphas. Changes no model."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from sdxl_lora.config.unet_blocks import check_blocks, value_of
from sdxl_lora.lora.formats.keys import NEVER, TARGETS, is_target


def target_modules(model: nn.Module, targets: str) -> list[str]:
    """Return the full names of the modules that `targets` selects, in the model's order.

    Args:
        targets: one of TARGETS, or a regular expression searched in the names of linear and convolution layers.
    Raises:
        ValueError: `targets` is no regular expression, or matches nothing or a layer that must not change.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    if targets in TARGETS:
        return [name for name, layer in layers.items() if is_target(name, targets, isinstance(layer, nn.Linear))]
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ValueError(
            f"targets {targets!r} is neither one of {', '.join(TARGETS)} nor a regular expression ({error})."
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


def layers_with_ranks(
    names: Iterable[str], rank: int, alpha: float, block_ranks: Mapping[str, int], use_rslora: bool = False
) -> dict[str, tuple[int, float]]:
    """Return (rank, alpha) of each of a UNet's modules, without those of blocks with rank 0.

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
    """Return the arguments of `add_lora` for just these modules, each with its own (rank, alpha)."""

    def by_value(place: int) -> dict:
        """Return {value: expression that matches its modules}, the most frequent value first."""
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


def text_encoder_targets(encoder: nn.Module, name: str, targets: str) -> str:
    """Return a regular expression for add_lora that matches the text encoder modules to train.

    If `targets` is a regular expression, which is meant for the UNet, attention is used here. Modules that SDXL does
    not read are left out.

    Args:
        name: text_encoder or text_encoder_2.
    """
    names = target_modules(encoder, targets if targets in TARGETS else "attention")
    names = [module for module in names if not is_unread(encoder, name, module)]
    return "^(" + "|".join(map(re.escape, names)) + ")$"


def is_unread(encoder: Any, name: str, module: str) -> bool:
    """Return whether a module is in the first encoder's last layer: SDXL reads the hidden states before it."""
    return name == "text_encoder" and f"layers.{encoder.config.num_hidden_layers - 1}." in module

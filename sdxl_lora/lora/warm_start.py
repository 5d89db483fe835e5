"""Training that starts from a LoRA file: the file's modules, and loading its weights into a new adapter."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from sdxl_lora.io.file_system import file_sha256
from sdxl_lora.lora.formats.adapter import Adapter, change_shape
from sdxl_lora.lora.formats.keys import canonical
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.formats.shapes import why_not_sdxl
from sdxl_lora.lora.state import adapter_layers, adapter_tensors
from sdxl_lora.lora.targets import is_unread


@dataclass(frozen=True)
class WarmStart:
    """Adapters that a training starts from; none by default.

    adapters: by component and canonical module name.
    notes: messages on modules that are taken, left out, or start anew.
    sha256: of the file.
    """

    adapters: dict[str, dict[str, Adapter]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str | None = None


def read_warm_start(path: str | Path, kind: str, components: Iterable[str]) -> WarmStart:
    """Read the adapters of a LoRA file (any layout of formats/reader.py) for the components to train.

    Args:
        kind: kind of adapter to train: lora, dora, loha or lokr.
    Raises:
        ValueError: no LoRA for SDXL, another kind of adapter, or nothing for these components.
    """
    file = read_lora(path)
    kinds = {adapter.kind for adapter in file.adapters.values()}
    if kinds != {kind}:
        flags = {"lora": "leave out --adapter and --use_dora", "dora": "add --use_dora"}
        flags |= {name: f"add --adapter {name}" for name in ("loha", "lokr")}
        to_lora = "make it a LoRA first, python -m sdxl_lora.tools convert --to diffusers --rank N"
        advice = flags.get(kinds.pop(), to_lora) if len(kinds) == 1 else to_lora
        found = " and ".join(sorted({adapter.kind for adapter in file.adapters.values()}))
        raise ValueError(f"{path} is a {found}, but a {kind} is to be trained: {advice}.")
    start: dict[str, dict[str, Adapter]] = {}
    components = list(components)
    for (component, name), adapter in file.adapters.items():
        start.setdefault(component, {})[name] = adapter
    notes = [f"WARNING: {note} (of init_lora)" for note in file.left_out]
    for component in components:
        if component in start:
            ranks = sorted({adapter.rank or 0 for adapter in start[component].values()})
            notes.append(f"{component}: {len(start[component])} modules of init_lora, rank {spell(ranks)}")
        else:
            notes.append(f"{component}: nothing in init_lora, it starts afresh from the settings")
    flag = "--train_text_encoder" if "unet" in components else "--train_unet"
    if left_out := sorted(set(start) - set(components)):
        notes.append(
            f"WARNING: init_lora also holds {' and '.join(left_out)}, which are not trained and will be missing from "
            f"the new LoRA: {flag} keeps them"
        )
    start = {component: start[component] for component in components if component in start}
    if not start:
        raise ValueError(f"{path} has nothing for {' or '.join(components)}: add {flag}.")
    return WarmStart(start, tuple(notes), file_sha256(file.path))


def spell(ranks: list[int]) -> str:
    """Describe a range of ranks; 0 stands for a LoKr of whole factors, which has no rank."""
    words = [str(rank) if rank else "full" for rank in ranks]
    return words[0] if len(words) == 1 else f"{words[0]} to {words[-1]}"


def layers_of(model: nn.Module, component: str, adapters: Mapping[str, Adapter]) -> dict[str, tuple[int, float]]:
    """Return (rank, alpha) of the model's modules that the adapters are for.

    Raises:
        ValueError: the model lacks such modules, or has them in other shapes.
    """
    modules = {}
    for module, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            try:
                modules[canonical(component, module)] = module, layer
            except ValueError:  # no LoRA file can name this module
                continue
    if missing := [name for name in adapters if name not in modules]:
        raise ValueError(
            f"it is a LoRA for another model, SD 1.5 perhaps: this base's {component} has no {missing[0]} "
            f"(and lacks {len(missing) - 1} others of its modules)."
        )
    layers = {}
    for name, adapter in adapters.items():
        module, layer = modules[name]
        change, weight = change_shape(adapter), _weight_shape(layer)
        if change != weight:
            why = why_not_sdxl({(component, name): adapter for name, adapter in adapters.items()})
            raise ValueError(
                f"{component} {name} changes {change[0]}x{change[1]}, this base's weight is {weight[0]}x{weight[1]}: "
                f"{why or 'it is a LoRA for another base'}."
            )
        # PEFT keeps LoKr's second factor whole at a rank this large
        rank = adapter.rank or max(adapter.tensors["lokr_w2"].shape)
        layers[module] = (rank, adapter.alpha if adapter.rank else float(rank))
    return layers


def _weight_shape(layer: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """Return (out, in * kh * kw), also for a quantized layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels * math.prod(layer.kernel_size)
    return layer.out_features, layer.in_features


def without_unread(model: nn.Module, component: str, adapters: Mapping[str, Adapter]) -> tuple[dict[str, Adapter], str]:
    """Return the adapters of modules that SDXL reads, and a note on the others, which have no gradient or effect."""
    read = {name: adapter for name, adapter in adapters.items() if not is_unread(model, component, name)}
    count = len(adapters) - len(read)
    return read, f"{component}: {count} modules of the last layer, which SDXL does not read, are left out" * (count > 0)


def lokr_factor(adapters: Iterable[Adapter]) -> int:
    """Return the side of LoKr's first factors if all are square and alike; else -1 for the most balanced split."""
    shapes = {tuple(adapter.tensors.get("lokr_w1", torch.empty(0)).shape) for adapter in adapters}
    sides = {side for shape in shapes for side in shape}
    return sides.pop() if len(sides) == 1 and len(next(iter(shapes))) == 2 else -1


@torch.no_grad()
def load_adapters(model: nn.Module, component: str, adapters: Mapping[str, Adapter]) -> None:
    """Copy the adapters' weights into the model's, which has the same modules and ranks.

    Raises:
        ValueError: their shapes differ.
    """
    for name, layer in adapter_layers(model, component).items():
        own, given = adapter_tensors(layer), adapters[name].tensors
        if "dora_scale" in given and given["dora_scale"].shape[0] != given["lora_up"].shape[0]:
            raise ValueError("init_lora is a DoRA with lengths per input, PEFT's are per output: make it a LoRA first.")
        shapes = {part: tensor.numel() for part, tensor in given.items()}
        if shapes != {part: parameter.numel() for part, parameter in own.items()}:
            raise ValueError(
                f"init_lora's {name} ({', '.join(f'{part} {tuple(t.shape)}' for part, t in given.items())}) cannot go "
                f"on training here ({', '.join(f'{part} {tuple(p.shape)}' for part, p in own.items())} is needed): "
                "make it a LoRA first, python -m sdxl_lora.tools resize."
            )
        for part, parameter in own.items():
            parameter.copy_(given[part].reshape(parameter.shape))

"""Adapter weights out of a model and into it. `lora_state` is exact, for resuming; `module_adapter` is for files.

Some adapters start as a part of the base's weights (inject.changes_base). Their initial factors are kept beside them:
the change of the original base is the current factors' product minus the initial one.
"""

import re
from collections.abc import Mapping

import torch
from peft.tuners.lokr import LoKrLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sdxl_lora.lora.formats.adapter import Adapter, concatenate
from sdxl_lora.lora.formats.keys import canonical

ADAPTER = "default"
LYCORIS_NAME = {"lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "dora_scale"}
ADAPTER_TENSOR = re.compile(rf"\.(lora_|hada_|lokr_)\w+\.{ADAPTER}(\.weight)?$")
START = "start_factors"  # attribute of a layer whose base weight lost them


def remember_start(model: nn.Module) -> None:
    """Store the adapters' initial factors; call it right after the base's weights have lost them."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            setattr(layer, START, copies(adapter_tensors(layer)))


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in float32 on the CPU."""
    return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in tensors.items()}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters by PEFT's name less the adapter's (`….to_q.lora_A.weight`), in model order."""
    return {
        name.replace(f".{ADAPTER}", ""): parameter
        for name, parameter in model.named_parameters()
        if ADAPTER_TENSOR.search(name)
    }


def start_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the initial factors of adapters that changed the base, by name; empty for others."""
    return {
        f"{module}.{START}.{name}": tensor
        for module, layer in model.named_modules()
        for name, tensor in getattr(layer, START, {}).items()
    }


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the adapter's tensors as trained: float32, on the CPU, alpha not multiplied in."""
    return copies(adapter_parameters(model) | start_tensors(model))


def load_lora_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Restore the result of `lora_state`; the model's adapter must have the same modules and ranks.

    Raises:
        ValueError: names are missing, left over, or of another shape. Nothing is changed then.
    """
    parameters = adapter_parameters(model)
    tensors = parameters | start_tensors(model)
    wrong = [f"missing {name}" for name in tensors if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in tensors]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, the model needs {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in state and state[name].shape != tensor.shape
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
        for name, layer in model.named_modules():
            if own := getattr(layer, START, None):
                _give_up(layer, own, {part: state[f"{name}.{START}.{part}"] for part in own})


def _give_up(layer: BaseTunerLayer, now: dict[str, Tensor], instead: dict[str, Tensor]) -> None:
    """Make the base's weight lack `instead` in place of `now`; another machine's decomposition may differ."""
    if all(torch.equal(now[part], instead[part]) for part in now):
        return
    weight = layer.get_base_layer().weight
    change = now["lora_up"] @ now["lora_down"] - instead["lora_up"] @ instead["lora_down"]
    weight.add_((layer.scaling[ADAPTER] * change).to(weight))
    setattr(layer, START, instead)


def adapter_layers(model: nn.Module, component: str) -> dict[str, BaseTunerLayer]:
    """Return PEFT's layers by canonical module name (formats/keys.py).

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


def adapter_tensors(layer: BaseTunerLayer) -> dict[str, nn.Parameter]:
    """Return a layer's adapter parameters, not copied, under LyCORIS names."""
    tensors = {}
    for attribute in layer.adapter_layer_names:
        if ADAPTER in getattr(layer, attribute):
            tensor = getattr(layer, attribute)[ADAPTER]
            tensors[LYCORIS_NAME.get(attribute, attribute)] = getattr(tensor, "weight", tensor)
    return tensors


def module_adapter(layer: BaseTunerLayer) -> Adapter:
    """Return a layer's change of the original base, LyCORIS names, alpha included, as float32 copies on the CPU."""
    rank = layer.r[ADAPTER]
    alpha = layer.scaling[ADAPTER] * rank  # PEFT's scaling is alpha / r, or with rsLoRA alpha / sqrt(r)
    tensors = copies(adapter_tensors(layer))
    if start := getattr(layer, START, None):
        return concatenate([(Adapter(tensors, alpha), 1.0), (Adapter(start, alpha), -1.0)])
    if "dora_scale" in tensors:
        tensors["dora_scale"] = tensors["dora_scale"].reshape(-1, *[1] * (tensors["lora_down"].dim() - 1))
    if isinstance(layer, LoKrLayer) and not {"lokr_w1_b", "lokr_w2_b"} & set(tensors):
        tensors["lokr_w1"] *= alpha / rank  # LyCORIS gives two whole factors strength 1
        alpha = 1.0
    return Adapter(tensors, alpha)

"""Shapes of the layers that a LoRA changes, by canonical name, and a check that it is for SDXL. Loads nothing.

These rules replace SDXL's model classes, which take seconds to import; a test compares both at full size.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sdxl_lora.lora.formats.adapter import Adapter, change_shape
from sdxl_lora.lora.formats.kinds import other_model

Key = tuple[str, str]  # (component, canonical module name)
Shape = tuple[int, int]  # (out, in * kernel height * kernel width)


@dataclass(frozen=True)
class Widths:
    """Widths that determine the shapes of a model with SDXL's structure.

    channels, depths: of the three levels; depths counts the transformer blocks of an attention.
    context: of the cross-attention; added: of the pooled text and sizes together.
    text: by component (hidden, inner, layers, projection), projection 0 for none.
    """

    channels: tuple[int, int, int]
    depths: tuple[int, int, int]
    context: int
    added: int
    text: Mapping[str, tuple[int, int, int, int]]


SDXL = Widths(
    (320, 640, 1280),
    (0, 2, 10),
    2048,
    2816,
    {"text_encoder": (768, 3072, 12, 0), "text_encoder_2": (1280, 5120, 32, 1280)},
)
# examples/tiny_sdxl.py, the base of the demo
TINY = Widths((16, 32, 32), (0, 1, 2), 56, 80, {"text_encoder": (24, 48, 3, 0), "text_encoder_2": (32, 64, 3, 32)})
MODELS_BY_CONTEXT = {768: "SD 1.5", 1024: "SD 2", 1280: "SDXL's refiner"}


def layer_shape(key: Key, widths: Widths = SDXL) -> Shape | None:
    """Return the shape of a module's weight as a matrix; None if the model has no such module."""
    component, name = key
    return _unet_shape(name, widths) if component == "unet" else _text_shape(name, *widths.text[component])


def _text_shape(name: str, hidden: int, inner: int, layers: int, projection: int) -> Shape | None:
    if name == "text_projection":
        return (projection, hidden) if projection else None
    match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)", name)
    assert match, name
    number, part = match.groups()
    if int(number) >= layers:
        return None
    return {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}.get(part, (hidden, hidden))


def _unet_shape(name: str, widths: Widths) -> Shape | None:
    first, time = widths.channels[0], 4 * widths.channels[0]
    stem = {
        "conv_in": (first, 9 * 4),
        "conv_out": (4, 9 * first),
        "time_embedding.linear_1": (time, first),
        "time_embedding.linear_2": (time, time),
        "add_embedding.linear_1": (time, widths.added),
        "add_embedding.linear_2": (time, time),
    }
    if name in stem:
        return stem[name]
    match = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d)\.)?(\w+?)s\.(\d)\.(.+)", name)
    assert match, name
    side, number, part, i, rest = match.groups()
    level = {"down": int(number or 0), "up": 2 - int(number or 0), "mid": 2}[side]
    own = widths.channels[level]
    if part == "resnet":
        into = _resnet_input(side, level, int(i), widths.channels)
        shortcut = (own, into) if into != own else None
        return {"conv1": (own, 9 * into), "time_emb_proj": (own, time), "conv_shortcut": shortcut}.get(
            rest, (own, 9 * own)
        )
    if part == "attention":
        return _attention_shape(rest, own, widths.depths[level], widths.context)
    last = 2 if side == "down" else 0  # the level without a sampler
    return (own, 9 * own) if level != last else None


def _resnet_input(side: str, level: int, i: int, channels: tuple[int, ...]) -> int:
    """Return the input channels of a residual block; on the way up they include the skip connection's."""
    own = channels[level]
    if side == "mid":
        return own
    if side == "down":
        return channels[max(level - 1, 0)] if i == 0 else own
    before = channels[min(level + 1, 2)] if i == 0 else own
    return before + (channels[max(level - 1, 0)] if i == 2 else own)


def _attention_shape(rest: str, own: int, depth: int, context: int) -> Shape | None:
    block = re.match(r"transformer_blocks\.(\d+)\.", rest)
    if depth == 0 or (block and int(block[1]) >= depth):
        return None
    for ending, shape in {
        "attn2.to_k": (own, context),
        "attn2.to_v": (own, context),
        "ff.net.0.proj": (8 * own, own),
        "ff.net.2": (own, 4 * own),
    }.items():
        if rest.endswith(ending):
            return shape
    return own, own


def misfits(adapters: Mapping[Key, Adapter], widths: Widths = SDXL) -> dict[Key, tuple[Shape, Shape | None]]:
    """Return (shape of the change, shape of the weight) of every adapter whose change does not fit."""
    found = {}
    for key, adapter in adapters.items():
        change, weight = change_shape(adapter), layer_shape(key, widths)
        same = weight and (change[0] == weight[0] if key[1] == "conv_in" else change == weight)  # inpainting's has 9
        if not same:
            found[key] = change, weight
    return found


def why_not_sdxl(adapters: Mapping[Key, Adapter]) -> str:
    """Return the model that a LoRA is for and the evidence, if it is not SDXL; "" if it is."""
    wrong = misfits(adapters)
    if not wrong or not misfits(adapters, TINY):
        return ""
    read = {
        change_shape(adapter)[1]
        for (_, name), adapter in adapters.items()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    }
    model = MODELS_BY_CONTEXT.get(read.pop() if len(read) == 1 else 0)
    model = model or other_model(name for _, name in adapters) or "another model"
    key, (change, weight) = next(iter(wrong.items()))
    there = f"SDXL's weight is {weight[0]}x{weight[1]}" if weight else "SDXL has no such module"
    more = f" (and {len(wrong) - 1} other modules do not fit)" if len(wrong) > 1 else ""
    return f"it is a LoRA for {model}, not SDXL: {' '.join(key)} changes {change[0]}x{change[1]}, {there}{more}"

"""Short names of the UNet's blocks, and settings that differ between blocks.

`down`, `mid` and `up` are its three parts; `up.0` is a level of one; `up.0.1` is that level's second attention and
residual block. The longest name that matches a module counts. Works on strings only; imports no torch.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)
NAME = re.compile(r"(down|up)(\.[012](\.[012])?)?|mid(\.[01])?")
MODULE = re.compile(r"^(down|mid|up)_blocks?\.(?:(\d)\.)?(?:(?:attentions|resnets)\.(\d)\.)?")
NAMES = "down, mid, up, a level such as down.1, or one of its blocks such as up.0.2"


def block_of(module: str) -> str:
    """Return the longest block name for a UNet module; "" outside all blocks.

    A level's downsampler or upsampler belongs to the level itself: `down.1`.
    """
    found = MODULE.match(module)
    return ".".join(part for part in found.groups() if part) if found else ""


def value_of(module: str, values: Mapping[str, Value], default: Value) -> Value:
    """Return the value that `values`, keyed by block name, gives for a module, else `default`."""
    block = block_of(module)
    while block and block not in values:
        block = block.rpartition(".")[0]
    return values.get(block, default)


def parse_blocks(texts: Sequence[str], number: Callable[[str], Number]) -> dict[str, Number]:
    """Parse ["up.0=value"] into {"up.0": value}.

    Raises:
        ValueError: a block is unknown or repeated, or its value is not a number of 0 or more.
    """
    values: dict[str, Number] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not NAME.fullmatch(name):
            raise ValueError(f"{text!r} must be block=number, and a block is {NAMES}")
        if name in values:
            raise ValueError(f"{name} is given twice")
        try:
            values[name] = number(value)
        except ValueError:
            raise ValueError(f"{text!r} must be block=number") from None
        if not 0 <= values[name] < float("inf"):
            raise ValueError(f"{text!r} must have a number of 0 or more")
    return values


def check_blocks(values: Mapping[str, object], modules: Iterable[str]) -> None:
    """Raise ValueError if a named block holds none of the modules."""
    present = {block_of(module) for module in modules} - {""}
    names = {name[:end] for name in present for end in (*(i for i, sign in enumerate(name) if sign == "."), len(name))}
    if missing := [name for name in values if name not in names]:
        raise ValueError(
            f"{', '.join(missing)}: no module is trained there. Blocks with trained modules: "
            f"{', '.join(sorted(names))}. Other target_modules reach other blocks."
        )

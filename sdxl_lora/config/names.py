"""Names that can be a file's everywhere and stay inside their folder."""

import re

from sdxl_lora.operating_system import is_reserved_name

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Raises ValueError unless `name` can be a LoRA file's name everywhere and stays inside its folder."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"invalid output name {name!r}: use letters, digits, dot, dash and underscore, at most 64, "
            "starting with a letter or digit."
        )
    if is_reserved_name(name):
        raise ValueError(f"the output name {name!r} is a device's on Windows: choose another.")
    if f"{name}.safetensors" == DIFFUSERS_NAME:
        raise ValueError(f"the output name {name!r} is the diffusers file's own: choose another.")

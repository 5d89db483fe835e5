"""File names that are valid on every system and stay inside their folder, and safe display of other names."""

import re
import unicodedata
from pathlib import Path

from sdxl_lora.operating_system import is_reserved_name

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
LONGEST = 64  # characters
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")
# characters that move the cursor, break the line, change the writing direction, or cannot be encoded
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a valid LoRA file name everywhere and stays inside its folder."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"invalid output name {name!r}: use letters, digits, dot, dash and underscore, at most 64, "
            "starting with a letter or digit."
        )
    if is_reserved_name(name):
        raise ValueError(f"the output name {name!r} is a device name on Windows: choose another.")
    if f"{name}.safetensors" == DIFFUSERS_NAME:
        raise ValueError(f"the output name {name!r} is that of the diffusers file: choose another.")


def name_from(folder: str) -> str:
    """Derive a LoRA file name from its folder's: the same name, or the closest one that `check_name` accepts."""
    name = folder
    if not NAME.fullmatch(name):
        letters = unicodedata.normalize("NFKD", folder.replace("ß", "ss")).encode("ascii", "ignore").decode()
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("._-")[:LONGEST].rstrip("._-") or "lora"
    return f"lora-{name}"[:LONGEST] if is_reserved_name(name) or f"{name}.safetensors" == DIFFUSERS_NAME else name


def printable(name: Path | str) -> str:
    r"""Return a name for messages, with control characters as \x1b and bytes that are not UTF-8 as \xe9."""
    return UNPRINTABLE.sub(escaped, str(name))


def escaped(match: re.Match) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"\\x{code - 0xDC00:02x}"
    return match[0].encode("unicode_escape").decode("ascii")

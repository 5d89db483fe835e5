"""Reads a LoRA file of any layout that SDXL users meet into adapters by (component, canonical module name).

kohya and LyCORIS keys with sgm or diffusers names; PEFT and diffusers keys, new and old; a PEFT adapter's folder.
LoRA, LoCon, DoRA, LoHa, LoKr. Every key is understood or the file is refused: nothing is left out in silence.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdxl_lora.io.safetensors import TensorFile
from sdxl_lora.lora.formats.adapter import Adapter, delta, shaped
from sdxl_lora.lora.formats.keys import COMPONENTS, canonical, kernel_size, parse_kohya_name

Key = tuple[str, str]  # (component, canonical module name)

LYCORIS = r"(?:hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
# (layout, what ends a key, the tensor's LyCORIS name); the rest of the key names the module.
ENDINGS = [
    ("peft", r"\.lora_A(?:\.default)?\.weight", "lora_down"),
    ("peft", r"\.lora_B(?:\.default)?\.weight", "lora_up"),
    ("peft", r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude"),
    ("diffusers-old", r"\.(?:lora|lora_linear_layer)\.(down|up)\.weight", None),
    ("diffusers-old", r"(?:\.processor)?\.to_[qkv]_lora\.(down|up)\.weight", None),
    ("diffusers-old", r"(?:\.processor)?\.to_out_lora\.(down|up)\.weight", None),
    ("kohya", r"\.lora_(down|up|mid)\.weight", None),
    ("kohya", rf"\.({LYCORIS})(?:\.default)?", None),
    ("kohya", r"\.(alpha|dora_scale)", None),
]
OLD_ATTENTION = re.compile(r"(?P<block>.*?)(?:\.processor)?\.to_(?P<part>q|k|v|out)_lora\.(?:down|up)\.weight")
BASE_MODEL_KEYS = ("model.diffusion_model.", "conditioner.embedders.", "cond_stage_model.", "down_blocks.", "conv_in.")


@dataclass(frozen=True)
class LoraFile:
    """What a file holds.

    layout: kohya-sgm, kohya-diffusers, peft, diffusers or diffusers-old.
    keys: the tensors' names as they stand in the file.
    """

    path: Path
    adapters: dict[Key, Adapter]
    metadata: dict[str, str]
    layout: str
    keys: tuple[str, ...]


def read_lora(path: str | Path) -> LoraFile:
    """Reads a LoRA file, or a folder with a PEFT adapter or diffusers' `pytorch_lora_weights.safetensors`.

    Returns:
        Its adapters, alpha included, factors in the shape of their layers, in the file's dtype.
    Raises:
        ValueError: no LoRA for SDXL (it says what it is), a key that is not understood, or half of a pair.
    """
    path = _lora_file(Path(path))
    config = {}
    if (path.parent / "adapter_config.json").is_file() and path.name.startswith("adapter_model"):
        config = json.loads((path.parent / "adapter_config.json").read_text(encoding="utf-8"))
    with TensorFile(path) as file:
        modules: dict[Key, dict[str, Tensor]] = {}
        layouts: dict[str, None] = {}
        for key in file.shapes:
            layout, module, tensor_name = _parse_key(key, file)
            layouts[layout] = None
            modules.setdefault(module, {})[tensor_name] = file.read(key)
        metadata, keys = file.metadata, tuple(file.shapes)
    if not modules:
        raise ValueError(f"{path} holds no tensors.")
    config = config or _header_config(metadata, path)
    adapters = {key: _adapter(key, tensors, config, path) for key, tensors in modules.items()}
    layout = next((layout for layout in layouts if layout != "kohya"), "kohya-sgm")
    return LoraFile(path, adapters, metadata, layout, keys)


def _lora_file(path: Path) -> Path:
    if path.is_dir():
        for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors"):
            if (path / name).is_file():
                return path / name
        raise ValueError(f"{path} is a folder without a LoRA (adapter_model or pytorch_lora_weights .safetensors).")
    return path


def _parse_key(key: str, file: TensorFile) -> tuple[str, Key, str]:
    """(layout, (component, module), tensor's name) of one key."""
    try:
        for layout, ending, name in ENDINGS:
            if found := re.fullmatch(rf"(?P<stem>.+?){ending}", key):
                name = name or found[2]
                name = {"down": "lora_down", "up": "lora_up", "mid": "lora_mid"}.get(name, name)
                stem = found["stem"]
                if old := OLD_ATTENTION.fullmatch(key):
                    stem = _old_attention_name(old)
                if stem.startswith("lora_"):
                    return _kohya_layout(stem), parse_kohya_name(stem), name
                prefixed, module = _dotted_module(stem, file.shapes[key])
                layout = "peft" if layout == "kohya" else layout
                return ("diffusers" if prefixed and layout == "peft" else layout), module, name
    except ValueError as error:
        raise ValueError(f"{file.path} is not a LoRA for SDXL: {key}: {error}") from None
    if key.startswith(BASE_MODEL_KEYS):
        raise ValueError(f"{file.path} is a base model ({key}), not a LoRA.")
    raise ValueError(f"{file.path} is not a LoRA for SDXL that is understood here: what is {key}?")


def _kohya_layout(stem: str) -> str:
    if not stem.startswith("lora_unet_"):
        return "kohya"  # encoders have one name in both
    return "kohya-diffusers" if re.match(r"lora_unet_(down|up|mid|conv|time_embedding|add)_", stem) else "kohya-sgm"


def _old_attention_name(found: re.Match) -> str:
    text = "self_attn" in found["block"]
    part = found["part"]
    return f"{found['block']}.{part}_proj" if text else f"{found['block']}.to_{part}{'.0' if part == 'out' else ''}"


def _dotted_module(stem: str, shape: tuple[int, ...]) -> tuple[bool, Key]:
    """(whether the component stood in front, its key) of a dotted module name."""
    stem = stem.removeprefix("base_model.model.")
    if stem.startswith("diffusion_model."):
        return True, ("unet", canonical("unet", stem.removeprefix("diffusion_model.")))
    first, _, rest = stem.partition(".")
    if first in COMPONENTS:
        return True, (first, canonical(first, rest))
    if "encoder.layers." not in stem:
        return False, ("unet", canonical("unet", stem))
    width = {768: "text_encoder", 3072: "text_encoder", 1280: "text_encoder_2", 5120: "text_encoder_2"}
    component = next((width[size] for size in shape if size in width), None)
    if component is None:
        raise ValueError("this text encoder is neither 768 nor 1280 wide, so it is not SDXL's.")
    return False, (component, canonical(component, stem))


def _header_config(metadata: dict[str, str], path: Path) -> dict:
    if "lora_adapter_metadata" not in metadata:
        return {}
    try:
        return dict(json.loads(metadata["lora_adapter_metadata"]))
    except ValueError:
        raise ValueError(f"{path}: the header's lora_adapter_metadata is not valid JSON.") from None


def _adapter(key: Key, tensors: dict[str, Tensor], config: dict, path: Path) -> Adapter:
    component, name = key
    alpha = tensors.pop("alpha", None)
    if missing := _missing(tensors):
        raise ValueError(f"{path}: {component} {name} lacks {', '.join(missing)}: the file is damaged.")
    try:
        adapter = _shaped(tensors, kernel_size(name))
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in tensors.items())
        raise ValueError(f"{path}: the tensors of {component} {name} do not fit together: {shapes}.") from None
    if alpha is not None:
        return Adapter(adapter.tensors, float(alpha.reshape(-1)[0]) if alpha.numel() else 0.0)
    return _with_config(adapter, config, component, name)


def _shaped(tensors: dict[str, Tensor], kernel: int) -> Adapter:
    if "lora_down" not in tensors:
        delta(
            Adapter({name: tensor.to("meta") for name, tensor in tensors.items()}, 1.0)
        )  # raises where they do not fit
        return Adapter(tensors, 1.0)
    down, up = tensors["lora_down"], tensors["lora_up"]
    if down.shape[0] != up.shape[1]:
        raise IndexError("ranks differ")
    if "magnitude" in tensors:  # PEFT's, one per output: (out,) or (1, out, 1, 1)
        tensors["dora_scale"] = tensors.pop("magnitude").reshape(-1, *[1] * (down.dim() - 1))
    return shaped(Adapter(tensors, 1.0), kernel)


def _missing(tensors: dict[str, Tensor]) -> list[str]:
    """What a module needs beside its tensors to be a LoRA, DoRA, LoHa or LoKr."""
    names = set(tensors)
    if any(name.startswith("hada") for name in names):
        return sorted({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} - names)
    if any(name.startswith("lokr") for name in names):
        factors = ({w} if w in names else {f"{w}_a", f"{w}_b"} for w in ("lokr_w1", "lokr_w2"))
        return sorted(set().union(*factors) - names)
    return sorted({"lora_down", "lora_up"} - names)


def _with_config(adapter: Adapter, config: dict, component: str, name: str) -> Adapter:
    """Strength as PEFT's config in the header or beside the file says; without one alpha equals rank."""
    own = {key.removeprefix(f"{component}."): value for key, value in config.items()}
    alpha = own.get("lora_alpha", own.get("alpha"))
    if alpha is None:
        return Adapter(adapter.tensors, float(adapter.rank or 1))
    rank = adapter.rank or own.get("r", 1)
    for pattern, value in (own.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            alpha = value
            break
    alpha = alpha * math.sqrt(rank) if own.get("use_rslora") else float(alpha)
    if adapter.rank is None:  # PEFT scales whole factors too, LyCORIS does not: the strength goes into the first
        return Adapter({**adapter.tensors, "lokr_w1": adapter.tensors["lokr_w1"].float() * (alpha / rank)}, 1.0)
    return Adapter(adapter.tensors, alpha)

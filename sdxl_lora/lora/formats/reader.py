"""Read a LoRA file of any layout in use for SDXL into adapters by (component, canonical module name).

Layouts: kohya and LyCORIS keys with sgm or diffusers names; PEFT and diffusers keys, new and old; a PEFT adapter's
folder; ComfyUI's and OMI's names. Kinds: LoRA, LoCon, DoRA, LoHa, LoKr, whole changes. Every key is read, or reported
as left out with the cost of that, or the file is refused: nothing is left out silently.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdxl_lora.io.safetensors import TensorFile
from sdxl_lora.lora.formats.adapter import Adapter, change_shape, shaped
from sdxl_lora.lora.formats.keys import canonical, kernel_size, parse_dotted_name, parse_kohya_name
from sdxl_lora.lora.formats.kinds import left_out_as, notes_of, other_model, what_else

Key = tuple[str, str]  # (component, canonical module name)

LYCORIS = r"(?:hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
NAMED = r"(?:\.(?!weight$)(?P<adapter>[^.]+))?"  # an adapter's name in PEFT
# (layout, ending of a key, the tensor's LyCORIS name); the rest of the key names the module.
ENDINGS = [
    ("peft", rf"\.lora_A{NAMED}(?:\.weight)?", "lora_down"),
    ("peft", rf"\.lora_B{NAMED}(?:\.weight)?", "lora_up"),
    ("peft", rf"\.lora_magnitude_vector{NAMED}(?:\.weight)?", "magnitude"),
    ("diffusers-old", r"\.(?:lora|lora_linear_layer)\.(down|up)\.weight", None),
    ("diffusers-old", r"(?:\.processor)?\.to_[qkv]_lora\.(down|up)\.weight", None),
    ("diffusers-old", r"(?:\.processor)?\.to_out_lora\.(down|up)\.weight", None),
    ("kohya", r"\.lora_(down|up|mid)\.weight", None),
    ("kohya", rf"\.({LYCORIS}){NAMED}(?:\.weight)?", None),
    ("kohya", r"\.(alpha|diff|dora_scale)(?:\.weight)?", None),
]
OLD_ATTENTION = re.compile(r"(?P<block>.*?)(?:\.processor)?\.to_(?P<part>q|k|v|out)_lora\.(?:down|up)\.weight")
COMFYUI = r"(text_encoders\.|clip_[lg]\.|diffusion_model\.)"
ONE = torch.ones(1, 1)
BASE_MODEL_KEYS = ("model.diffusion_model.", "conditioner.embedders.", "cond_stage_model.", "down_blocks.", "conv_in.")


@dataclass(frozen=True)
class LoraFile:
    """Contents of a LoRA file.

    layout: kohya-sgm, kohya-diffusers, peft, diffusers, diffusers-old or comfyui.
    keys: the tensors' names in the file.
    left_out: a sentence for each kind of tensor that is not among the adapters, with its cost.
    """

    path: Path
    adapters: dict[Key, Adapter]
    metadata: dict[str, str]
    layout: str
    keys: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def read_lora(path: str | Path) -> LoraFile:
    """Read a LoRA file, or a folder with a PEFT adapter or diffusers' `pytorch_lora_weights.safetensors`.

    Returns:
        Its adapters, alpha included, factors in the shape of their layers, in the file's dtype; float8 as float16,
        which holds all of its values.
    Raises:
        ValueError: the file is no LoRA for SDXL (the message says what it is), has an unknown key, or half of a pair.
    """
    path = _lora_file(Path(path))
    config = {}
    if (path.parent / "adapter_config.json").is_file() and path.name.startswith("adapter_model"):
        config = json.loads((path.parent / "adapter_config.json").read_text(encoding="utf-8"))
    with TensorFile(path) as file:
        if what := what_else(file.shapes):
            raise ValueError(f"{path} {what}")
        modules, layouts, left_out = _sorted_out(file)
        metadata, keys = file.metadata, tuple(file.shapes)
        notes = notes_of(left_out, file.read)
    if not modules:
        raise ValueError(f"{path} holds no LoRA layers ({'; '.join(notes)})." if notes else f"{path} holds no tensors.")
    config = config or _header_config(metadata, path)
    adapters = {key: _adapter(key, tensors, config, path) for key, tensors in modules.items()}
    layout = next((layout for layout in layouts if layout != "kohya"), "kohya-sgm")
    return LoraFile(path, adapters, metadata, layout, keys, notes)


def _sorted_out(file: TensorFile) -> tuple[dict[Key, dict[str, Tensor]], dict[str, None], dict[str, str]]:
    """Return tensors by module, the layouts found, and the kind of each tensor left out by key."""
    kinds = {key: left_out_as(key, shape) for key, shape in file.shapes.items()}
    left_out = {key: kind for key, kind in kinds.items() if kind}
    stems = {key.rpartition(".")[0] for key in left_out}
    modules: dict[Key, dict[str, Tensor]] = {}
    layouts: dict[str, None] = {}
    names: dict[str | None, None] = {}
    for key in file.shapes:
        stem, _, ending = key.rpartition(".")
        if key in left_out or (ending == "alpha" and stem in stems and _is_alone(stem, file, left_out)):
            continue  # the alpha of a norm
        layout, module, tensor_name, adapter_name = _parse_key(key, file)
        layouts[layout], names[adapter_name] = None, None
        tensors = modules.setdefault(module, {})
        if tensor_name in tensors:
            spelled = ", ".join(str(name) for name in names if name)
            why = f"it holds several adapters ({spelled})" if len(names) > 1 else "another key is for the same"
            raise ValueError(f"{file.path}: {key} gives {' '.join(module)} a second time, {why}: save only one.")
        tensors[tensor_name] = _read(file, key, tensor_name)
    if len(names) > 1 and None not in names:
        raise ValueError(f"{file.path} holds several adapters ({', '.join(map(str, names))}): save only one of them.")
    return modules, layouts, left_out


def _is_alone(stem: str, file: TensorFile, left_out: dict[str, str]) -> bool:
    return all(key in left_out or key == f"{stem}.alpha" for key in file.shapes if key.startswith(f"{stem}."))


def _read(file: TensorFile, key: str, tensor_name: str) -> Tensor:
    tensor = file.read(key)
    if not tensor.is_floating_point() and tensor_name != "alpha":
        raise ValueError(f"{file.path} holds integers ({key}), so it is quantized: save it again in fp16 or bf16.")
    return tensor.half() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def _lora_file(path: Path) -> Path:
    if path.is_dir():
        for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors"):
            if (path / name).is_file():
                return path / name
        raise ValueError(f"{path} is a folder without a LoRA (adapter_model or pytorch_lora_weights .safetensors).")
    return path


def _parse_key(key: str, file: TensorFile) -> tuple[str, Key, str, str | None]:
    """Return (layout, (component, module), tensor's name, adapter's name in PEFT) of one key."""
    try:
        for layout, ending, name in ENDINGS:
            if found := re.fullmatch(rf"(?P<stem>.+?){ending}", key):
                name = name or found[2]
                name = {"down": "lora_down", "up": "lora_up", "mid": "lora_mid"}.get(name, name)
                stem, adapter_name = found["stem"], found.groupdict().get("adapter")
                if old := OLD_ATTENTION.fullmatch(key):
                    stem = _old_attention_name(old)
                if stem.startswith(("lora_", "lycoris_")):
                    return _kohya_layout(stem), parse_kohya_name(stem), name, adapter_name
                prefixed, module = _dotted_module(stem, file)
                layout = "peft" if layout == "kohya" else layout
                layout = "diffusers" if prefixed and layout == "peft" else layout
                return "comfyui" if re.match(COMFYUI, stem) else layout, module, name, adapter_name
    except ValueError as error:
        model = other_model(file.shapes)
        why = f"it is one for {model}." if model else error
        raise ValueError(f"{file.path} is not a LoRA for SDXL: {key}: {why}") from None
    if model := other_model(file.shapes):
        raise ValueError(f"{file.path} is not a LoRA for SDXL: {key}: it is one for {model}.")
    if key.startswith(BASE_MODEL_KEYS):
        raise ValueError(f"{file.path} is a base model ({key}), not a LoRA.")
    raise ValueError(f"{file.path} is not a LoRA for SDXL that is understood here: what is {key}?")


def _kohya_layout(stem: str) -> str:
    if not stem.startswith(("lora_unet_", "lycoris_")):
        return "kohya"  # encoder names are the same in both
    return (
        "kohya-diffusers"
        if re.match(r"(lora_unet|lycoris)_(down|up|mid|conv|time_embedding|add)_", stem)
        else "kohya-sgm"
    )


def _old_attention_name(found: re.Match) -> str:
    text = "self_attn" in found["block"]
    part = found["part"]
    return f"{found['block']}.{part}_proj" if text else f"{found['block']}.to_{part}{'.0' if part == 'out' else ''}"


def _dotted_module(stem: str, file: TensorFile) -> tuple[bool, Key]:
    """Return whether a dotted module name begins with its component, and the module's key."""
    component, name = parse_dotted_name(stem)
    if component:
        return True, (component, name)
    if "encoder.layers." not in name:
        return False, ("unet", canonical("unet", name))
    width = {768: "text_encoder", 3072: "text_encoder", 1280: "text_encoder_2", 5120: "text_encoder_2"}
    shapes = (shape for key, shape in file.shapes.items() if key.startswith(f"{stem}."))
    component = next((width[size] for shape in shapes for size in shape if size in width), None)
    if component is None:
        raise ValueError("this text encoder is neither 768 nor 1280 wide, so it is not SDXL's.")
    return False, (component, canonical(component, name))


def _header_config(metadata: dict[str, str], path: Path) -> dict:
    if "lora_adapter_metadata" not in metadata:
        return {}
    try:
        return dict(json.loads(metadata["lora_adapter_metadata"]))
    except ValueError:
        raise ValueError(f"{path}: the header's lora_adapter_metadata is not valid JSON.") from None


def _adapter(key: Key, tensors: dict[str, Tensor], config: dict, path: Path) -> Adapter:
    component, name = key
    of_file = tensors.pop("alpha", None)
    kinds = {name.split("_")[0] for name in tensors} - {"magnitude", "dora"}
    if len(kinds) > 1:
        raise ValueError(
            f"{path}: {component} {name} is changed by {' and '.join(sorted(kinds))} at once: save only one."
        )
    if missing := _missing(tensors):
        raise ValueError(f"{path}: {component} {name} lacks {', '.join(missing)}: the file is damaged.")
    try:
        adapter = _shaped(tensors, kernel_size(name))
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in tensors.items())
        raise ValueError(f"{path}: the tensors of {component} {name} do not fit together: {shapes}.") from None
    if of_file is not None:
        alpha = float(of_file.reshape(-1)[0]) if of_file.numel() else 0.0
        if adapter.rank is None and not math.isfinite(alpha):
            alpha = 1.0  # meaningless without a rank: LyCORIS writes 1e10, which is infinite in fp16
        return Adapter(adapter.tensors, alpha)
    return _with_config(adapter, config, component, name)


def _shaped(tensors: dict[str, Tensor], kernel: int) -> Adapter:
    if "magnitude" in tensors or tensors.get("dora_scale", ONE).dim() == 1:  # PEFT's, one per output
        scale = tensors.pop("magnitude") if "magnitude" in tensors else tensors["dora_scale"]
        tensors["dora_scale"] = scale.reshape(-1, *[1] * (3 if kernel else 1))
    if "lora_down" not in tensors:
        change_shape(Adapter(tensors, 1.0))  # raises if they do not fit
        return Adapter(tensors, 1.0)
    down, up = tensors["lora_down"], tensors["lora_up"]
    if down.shape[0] != up.shape[1]:
        raise IndexError("ranks differ")
    return shaped(Adapter(tensors, 1.0), kernel)


def _missing(tensors: dict[str, Tensor]) -> list[str]:
    """Return the tensors that a module lacks to be a LoRA, DoRA, LoHa or LoKr."""
    names = set(tensors)
    if "diff" in names:
        return []
    if any(name.startswith("hada") for name in names):
        return sorted({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} - names)
    if any(name.startswith("lokr") for name in names):
        factors = ({w} if w in names else {f"{w}_a", f"{w}_b"} for w in ("lokr_w1", "lokr_w2"))
        return sorted(set().union(*factors) - names)
    return sorted({"lora_down", "lora_up"} - names)


def _with_config(adapter: Adapter, config: dict, component: str, name: str) -> Adapter:
    """Set the strength from PEFT's config in the header or beside the file; without one alpha equals rank."""
    if adapter.kind == "full":
        return adapter
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

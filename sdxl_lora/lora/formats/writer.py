"""Write adapters as a LoRA file in a chosen layout, and verify it before it gets its name. Knows no models.

`kohya`: kohya's container, sgm names, alpha as tensors, all metadata: ComfyUI, A1111, Forge, InvokeAI, diffusers.
`diffusers`: diffusers' keys with alpha multiplied into `lora_B` and none in the header: old and new diffusers alike.
`peft`: a folder for each component that `PeftModel.from_pretrained` opens.
"""

import json
import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from sdxl_lora.errors import DiskError, NonFiniteError
from sdxl_lora.io.safetensors import TensorFile, data_sha256, write_tensors
from sdxl_lora.lora.formats.adapter import Adapter, in_float64, pad_rank, plain
from sdxl_lora.lora.formats.keys import KOHYA_PREFIX, kohya_name
from sdxl_lora.lora.formats.metadata import IMPLEMENTATION
from sdxl_lora.lora.formats.reader import Key

log = logging.getLogger(__name__)

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Rounding to fp16 changes a tensor by 2.8e-4 of its norm; more means values below 6e-5, which lose digits.
MAX_ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 4e-3, torch.float32: 0.0}
MAX_NEW_ZEROS = 0.01  # share of a tensor's values
Adapters = dict[Key, Adapter]


def one_rank(adapters: Adapters) -> Adapters:
    """Return the same changes with one rank and one alpha per component, all that diffusers reads correctly.

    Smaller ranks are padded with zeros; a strength other than the component's first moves into `lora_up`. A text
    encoder layer with some of q, k, v, out_proj gets the others as zeros: diffusers raises without them.

    Raises:
        ValueError: an adapter is neither LoRA nor DoRA.
    """
    if other := sorted({adapter.kind for adapter in adapters.values()} - {"lora", "dora"}):
        raise ValueError(f"{', '.join(other)} is not a LoRA: make it one first (python -m sdxl_lora.tools convert).")
    uniform: Adapters = {}
    for component in dict.fromkeys(component for component, _ in adapters):
        own = {name: adapter for (part, name), adapter in adapters.items() if part == component}
        if component != "unet" and all(adapter.kind == "lora" for adapter in own.values()):
            own = _whole_attention(own)
        rank = max(adapter.lora_rank for adapter in own.values())
        scale = next(iter(own.values())).scale
        uniform |= {(component, name): pad_rank(adapter, rank, scale) for name, adapter in own.items()}
    return uniform


def _whole_attention(adapters: dict[str, Adapter]) -> dict[str, Adapter]:
    whole = dict(adapters)
    for name, adapter in adapters.items():
        if layer := re.match(r"(text_model\.encoder\.layers\.\d+\.)", name):
            up, down = adapter.tensors["lora_up"].shape, adapter.tensors["lora_down"].shape
            width = up[0] if name.endswith("fc2") else down[1]
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                zero = plain(torch.zeros(1, width), torch.zeros(width, 1), adapter.scale)
                whole.setdefault(f"{layer[1]}self_attn.{part}", zero)
    return whole


def save_kohya(
    path: Path,
    adapters: Adapters,
    precision: str = "fp16",
    metadata: dict[str, str] | None = None,
    diffusers_names: bool = False,
) -> None:
    """Write kohya's container: `lora_down.weight`, `lora_up.weight`, `alpha`, or LyCORIS' LoHa and LoKr tensors.

    Args:
        diffusers_names: use diffusers' names for the UNet's modules instead of sgm's.
    Raises:
        ValueError: a DoRA, which the clients of this container draw wrong; see `to_precision` for others.
    """
    if any(adapter.kind == "dora" for adapter in adapters.values()):
        raise ValueError("DoRA in kohya's container is drawn wrongly by its clients: make it a LoRA (needs the base).")
    lora = all(adapter.kind == "lora" for adapter in adapters.values())
    adapters = one_rank(adapters) if lora else adapters
    tensors, alphas = {}, {}
    for (component, name), adapter in adapters.items():
        stem = kohya_name(component, name)
        if diffusers_names:
            stem = KOHYA_PREFIX[component] + name.replace(".", "_")
        alphas[f"{stem}.alpha"] = torch.tensor(adapter.alpha)  # always float32, since it is the strength
        for part, tensor in adapter.tensors.items():
            tensors[f"{stem}.{part}{'.weight' if part.startswith('lora') else ''}"] = tensor
    first = next(iter(adapters.values()))
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",  # without it A1111 takes the file for SD 1 and hides it
        "ss_v2": "False",
        "ss_output_name": path.stem,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": path.stem,
        **(metadata or {}),
        "ss_network_module": "networks.lora" if lora else "lycoris.kohya",
        "ss_network_dim": str(first.rank or 1),
        "ss_network_alpha": str(first.alpha),
    }
    if not lora:
        metadata["ss_network_args"] = json.dumps({"algo": first.kind})
    save_checked(path, to_precision(tensors, precision, path) | alphas, metadata, hashed=True)


def save_diffusers(
    path: Path, adapters: Adapters, precision: str = "fp16", metadata: dict[str, str] | None = None
) -> None:
    """Write diffusers' keys of LoRA or DoRA, alpha multiplied into `lora_B`: strength 1 in every diffusers version."""
    tensors: dict[str, torch.Tensor] = {}
    for (component, name), adapter in one_rank(adapters).items():
        tensors |= _peft_tensors(f"{component}.{name}", adapter, adapter.scale)
    about = {key: value for key, value in (metadata or {}).items() if key.startswith("modelspec.")}
    save_checked(path, to_precision(tensors, precision, path), {"format": "pt", **about})


def save_peft(folder: Path, adapters: Adapters, precision: str = "fp16") -> list[Path]:
    """Write `<folder>/<component>/adapter_model.safetensors` and `adapter_config.json`, alpha in the config."""
    paths = []
    adapters = one_rank(adapters)
    for component in dict.fromkeys(component for component, _ in adapters):
        own = {name: adapter for (part, name), adapter in adapters.items() if part == component}
        first = next(iter(own.values()))
        tensors: dict[str, torch.Tensor] = {}
        for name, adapter in own.items():
            # transformers names encoder one without the prefix; PEFT finds modules by the end of their names
            module = name.removeprefix("text_model.") if component == "text_encoder" else name
            tensors |= _peft_tensors(f"base_model.model.{module}", adapter, 1.0)
        config = {
            "peft_type": "LORA",
            "r": first.rank,
            "lora_alpha": first.alpha,
            "use_dora": first.kind == "dora",
            "target_modules": [name.removeprefix("text_model.") for name in own],
            "bias": "none",
            "inference_mode": True,
        }
        path = folder / component / "adapter_model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checked(path, to_precision(tensors, precision, path), {"format": "pt"})
        (path.parent / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        paths.append(path)
    return paths


def _peft_tensors(stem: str, adapter: Adapter, scale: float) -> dict[str, Tensor]:
    down, up = adapter.tensors["lora_down"], adapter.tensors["lora_up"]
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up * scale}
    if adapter.kind == "dora":
        magnitude = adapter.tensors["dora_scale"]
        if magnitude.shape[0] == 1 < up.shape[0]:
            raise ValueError(f"{stem}: this DoRA has lengths per input, PEFT's are per output: make it a LoRA.")
        # PEFT adds `.weight` itself when diffusers loads the UNet; transformers (5.23) wants it in the file
        key = f"{stem}.lora_magnitude_vector{'.weight' if stem.startswith('text_encoder') else ''}"
        tensors[key] = magnitude.reshape((-1,) if down.dim() == 2 else (1, -1, 1, 1))
    return tensors


def to_precision(tensors: dict[str, Tensor], precision: str, path: Path) -> dict[str, Tensor]:
    """Return `tensors` in `precision`, or in fp32 with a logged warning if that would lose information.

    Raises:
        ValueError: the precision is unknown.
        NonFiniteError: a tensor holds NaN or infinity (it names the first).
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} must be one of {', '.join(PRECISIONS)}.")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{path.name} was not written: {name} holds NaN or infinity.")
    dtype = PRECISIONS[precision]
    for name, tensor in tensors.items():
        if loss := _loss(tensor.float(), dtype):
            log.warning("%s is saved as fp32, not %s: %s %s.", path.name, precision, name, loss)
            return {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def _loss(tensor: Tensor, dtype: torch.dtype) -> str:
    """Describe the loss from rounding `tensor` (float32) to `dtype`; "" if it is negligible."""
    rounded = tensor.to(dtype).float()
    if not torch.isfinite(rounded).all():
        return f"reaches {tensor.abs().max():.3g}, beyond its range"
    new_zeros = ((rounded == 0) & (tensor != 0)).sum().item()
    if new_zeros > MAX_NEW_ZEROS * tensor.numel():
        return f"would lose {new_zeros} of {tensor.numel()} values to zero"
    # float64: squares of values near 1e-30 vanish in float32
    error, norm = in_float64(rounded - tensor).norm().item(), in_float64(tensor).norm().item()
    if error > MAX_ROUNDING[dtype] * norm:
        return f"would change by {error / norm:.1%}, its values are too small"
    return ""


def save_checked(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], hashed: bool = False) -> None:
    """Write the file and compare it, tensor by tensor, before it gets its name. `hashed` adds sshs_model_hash."""
    if wrong := [key for key, value in metadata.items() if not isinstance(value, str)]:
        raise ValueError(f"metadata values must be strings: {', '.join(wrong)}.")
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if hashed:
        digest = data_sha256(layout, tensors.__getitem__)
        metadata = {**metadata, "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}

    def verify(written: Path) -> None:
        with TensorFile(written) as file:
            differing = [name for name in tensors if not torch.equal(file.read(name), tensors[name])]
            if differing or set(file.shapes) != set(tensors) or file.metadata != metadata:
                raise DiskError(f"{path} did not read back as written ({differing[:3] or 'header'}): check the disk.")

    write_tensors(path, layout, tensors.__getitem__, metadata, verify)

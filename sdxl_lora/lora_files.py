"""Writes the two LoRA files that together load in every client, and proves each before it counts.

`<name>.safetensors`: kohya's container, sgm names, alpha as tensors, all metadata (ComfyUI, A1111, Forge, InvokeAI,
diffusers). `pytorch_lora_weights.safetensors`: diffusers' keys with alpha multiplied into `lora_B` and none in the
header, which old and new diffusers load alike.
"""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from sdxl_lora.lora import model_adapters
from sdxl_lora.lora_keys import kohya_name
from sdxl_lora.lora_math import Adapter, pad_rank, plain
from sdxl_lora.lora_metadata import IMPLEMENTATION
from sdxl_lora.safetensors_io import TensorFile, data_sha256, write_tensors

log = logging.getLogger(__name__)

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Rounding to fp16 changes a tensor by 2.8e-4 of its norm; more says that values fell below 6e-5, where digits go.
MAX_ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 4e-3, torch.float32: 0.0}
MAX_NEW_ZEROS = 0.01  # of a tensor's values
Adapters = dict[tuple[str, str], Adapter]


def write_lora_files(
    folder: str | Path,
    name: str,
    models: dict[str, nn.Module],
    precision: str = "fp16",
    metadata: dict[str, str] | None = None,
) -> list[Path]:
    """Saves the adapters of `models` as `<name>.safetensors` and `pytorch_lora_weights.safetensors`.

    Args:
        models: by component (`unet`, `text_encoder`, `text_encoder_2`), only those with an adapter.
        precision: fp16, bf16 or fp32; where a value does not survive it, fp32 is used and a warning logged.
        metadata: what `lora_metadata` gives.
    Returns:
        The two paths.
    Raises:
        ValueError: a bad name or precision, no adapter, or weights that are not finite. Older files stay.
        OSError: the disk is full or not writable. Older files stay.
    """
    check_name(name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    adapters = {
        (component, module): adapter
        for component, model in models.items()
        for module, adapter in model_adapters(model, component).items()
    }
    kohya, diffusers = folder / f"{name}.safetensors", folder / DIFFUSERS_NAME
    save_kohya(kohya, adapters, precision, metadata)
    save_diffusers(diffusers, adapters, precision, metadata)
    return [kohya, diffusers]


def check_name(name: str) -> None:
    """Raises ValueError unless `name` can be a file's name everywhere and stays inside its folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            f"invalid output name {name!r}: use letters, digits, dot, dash and underscore, at most 64, "
            "starting with a letter or digit."
        )
    if f"{name}.safetensors" == DIFFUSERS_NAME:
        raise ValueError(f"the output name {name!r} is the diffusers file's own: choose another.")


def one_rank(adapters: Adapters) -> Adapters:
    """The same changes with one rank and one alpha per component, which is all that diffusers reads rightly.

    Smaller ranks get zeros; another strength than the component's first moves into `lora_up`. A text encoder layer
    with some of q, k, v, out_proj gets the others as zeros: diffusers raises without them.
    """
    if other := sorted({adapter.kind for adapter in adapters.values()} - {"lora"}):
        raise ValueError(f"{', '.join(other)} cannot be saved as a plain LoRA.")
    uniform = {}
    for component in dict.fromkeys(component for component, _ in adapters):
        own = {name: adapter for (part, name), adapter in adapters.items() if part == component}
        if component != "unet":
            own = _whole_attention(own)
        rank = max(adapter.rank for adapter in own.values())
        scale = next(iter(own.values())).scale
        uniform |= {(component, name): pad_rank(adapter, rank, scale) for name, adapter in own.items()}
    return uniform


def _whole_attention(adapters: dict[str, Adapter]) -> dict[str, Adapter]:
    whole = dict(adapters)
    for name, adapter in adapters.items():
        if layer := re.match(r"(text_model\.encoder\.layers\.\d+\.)", name):
            width = adapter.tensors["lora_up" if name.endswith("fc2") else "lora_down"].shape
            width = width[0] if name.endswith("fc2") else width[1]
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                zero = plain(torch.zeros(1, width), torch.zeros(width, 1), adapter.scale)
                whole.setdefault(f"{layer[1]}self_attn.{part}", zero)
    return whole


def save_kohya(path: Path, adapters: Adapters, precision: str = "fp16", metadata: dict[str, str] | None = None) -> None:
    """Writes kohya's container with sgm names: `lora_down.weight`, `lora_up.weight`, `alpha` for each module."""
    adapters = one_rank(adapters)
    tensors, alphas = {}, {}
    for (component, name), adapter in adapters.items():
        stem = kohya_name(component, name)
        alphas[f"{stem}.alpha"] = torch.tensor(adapter.alpha)  # float32 in every precision: it is the strength
        tensors[f"{stem}.lora_down.weight"] = adapter.tensors["lora_down"]
        tensors[f"{stem}.lora_up.weight"] = adapter.tensors["lora_up"]
    first = next(iter(adapters.values()))
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",  # without it A1111 takes the file for SD 1 and hides it
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_output_name": path.stem,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": path.stem,
        **(metadata or {}),
        "ss_network_dim": str(first.rank),
        "ss_network_alpha": str(first.alpha),
    }
    tensors = to_precision(tensors, precision, path)
    save_checked(path, tensors | alphas, metadata, hashed=True)


def save_diffusers(
    path: Path, adapters: Adapters, precision: str = "fp16", metadata: dict[str, str] | None = None
) -> None:
    """Writes diffusers' keys, alpha multiplied into `lora_B`: strength 1 in every version of diffusers."""
    tensors = {}
    for (component, name), adapter in one_rank(adapters).items():
        tensors[f"{component}.{name}.lora_A.weight"] = adapter.tensors["lora_down"]
        tensors[f"{component}.{name}.lora_B.weight"] = adapter.tensors["lora_up"] * adapter.scale
    about = {key: value for key, value in (metadata or {}).items() if key.startswith("modelspec.")}
    save_checked(path, to_precision(tensors, precision, path), {"format": "pt", **about})


def to_precision(tensors: dict[str, Tensor], precision: str, path: Path) -> dict[str, Tensor]:
    """`tensors` in `precision`, or in fp32 with a logged warning where that would lose what they say.

    Raises:
        ValueError: the precision is unknown, or a tensor is not finite (it names the first).
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} must be one of {', '.join(PRECISIONS)}.")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path.name} was not written: {name} holds NaN or infinity, so training has diverged.")
    dtype = PRECISIONS[precision]
    for name, tensor in tensors.items():
        if loss := _loss(tensor.float(), dtype):
            log.warning("%s is saved as fp32, not %s: %s %s.", path.name, precision, name, loss)
            return {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def _loss(tensor: Tensor, dtype: torch.dtype) -> str:
    """What rounding `tensor` (float32) to `dtype` would lose, in words; empty where nothing that matters."""
    rounded = tensor.to(dtype).float()
    if not torch.isfinite(rounded).all():
        return f"reaches {tensor.abs().max():.3g}, beyond its range"
    new_zeros = ((rounded == 0) & (tensor != 0)).sum().item()
    if new_zeros > MAX_NEW_ZEROS * tensor.numel():
        return f"would lose {new_zeros} of {tensor.numel()} values to zero"
    # float64: squares of values near 1e-30 vanish in float32
    error, norm = (rounded - tensor).double().norm().item(), tensor.double().norm().item()
    if error > MAX_ROUNDING[dtype] * norm:
        return f"would change by {error / norm:.1%}, its values are too small"
    return ""


def save_checked(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], hashed: bool = False) -> None:
    """Writes the file and reads it back, tensor by tensor, before it gets its name. `hashed` adds sshs_model_hash."""
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
                raise OSError(f"{path} did not read back as written ({differing[:3] or 'header'}): check the disk.")

    write_tensors(path, layout, tensors.__getitem__, metadata, verify)

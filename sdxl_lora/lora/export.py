"""Write a trained model's two LoRA files, which together load in every client, and side files that some read.

`<name>.safetensors` is kohya's container, `pytorch_lora_weights.safetensors` is for diffusers; see formats/writer.py.
"""

import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from PIL import Image
from torch import nn

from sdxl_lora.config.names import DIFFUSERS_NAME, check_name
from sdxl_lora.io.file_system import replace
from sdxl_lora.io.safetensors import TensorFile, write_tensors
from sdxl_lora.lora.formats.adapter import Adapter, as_lora
from sdxl_lora.lora.formats.keys import kernel_size
from sdxl_lora.lora.formats.reader import Key
from sdxl_lora.lora.formats.writer import Adapters, save_diffusers, save_kohya
from sdxl_lora.lora.state import adapter_layers, adapter_tensors, module_adapter

log = logging.getLogger(__name__)


def write_lora_files(
    folder: str | Path,
    name: str,
    models: dict[str, nn.Module],
    precision: str = "fp16",
    metadata: dict[str, str] | None = None,
    merged_rank: int = 64,
) -> list[Path]:
    """Save the adapters of `models` as `<name>.safetensors` and `pytorch_lora_weights.safetensors`.

    DoRA goes unchanged into the diffusers file and as its nearest LoRA into the other; LoHa and LoKr the other way
    round, since no client reads both. The share of the change that such a LoRA keeps is logged.

    Args:
        models: by component (`unet`, `text_encoder`, `text_encoder_2`), only those with an adapter.
        precision: fp16, bf16 or fp32; if a value does not survive it, fp32 is used and a warning logged.
        metadata: from `lora_metadata`.
        merged_rank: rank of the LoRA that replaces a DoRA, LoHa or LoKr.
    Returns:
        The two paths.
    Raises:
        ValueError: a bad name or precision, or no adapter.
        NonFiniteError: a weight is NaN or infinite. Older files stay.
        DiskError: the disk is full or not writable. Older files stay.
    """
    check_name(name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layers = {
        (component, module): layer
        for component, model in models.items()
        for module, layer in adapter_layers(model, component).items()
    }
    own: Adapters = {key: module_adapter(layer) for key, layer in layers.items()}
    kinds = {adapter.kind for adapter in own.values()}
    plain = own if kinds == {"lora"} else nearest_loras(own, layers, merged_rank)
    kohya, diffusers = folder / f"{name}.safetensors", folder / DIFFUSERS_NAME
    save_kohya(kohya, plain if "dora" in kinds else own, precision, metadata)
    save_diffusers(diffusers, own if _diffusers_reads(own) else plain, precision, metadata)
    return [kohya, diffusers]


def _diffusers_reads(adapters: Adapters) -> bool:
    """Return whether diffusers reads the adapters: LoRA, and DoRA except in a text encoder without attention layers."""
    kinds = {adapter.kind for adapter in adapters.values()}
    encoders = {component for component, _ in adapters if component != "unet"}
    attention = {component for component, name in adapters if "self_attn" in name}
    return kinds == {"lora"} or (kinds == {"dora"} and encoders <= attention)


def nearest_loras(adapters: Adapters, layers: dict[Key, BaseTunerLayer], rank: int) -> Adapters:
    """Return each adapter as a plain LoRA of at most `rank`; log the least share of a change's energy that is kept."""
    loras, least = {}, 1.0
    for key, adapter in adapters.items():
        weight = dequantize_module_weight(layers[key].get_base_layer()).detach()
        device = next(iter(adapter_tensors(layers[key]).values())).device  # a streamed base may be on another device
        weight = weight.to(device if device.type == "cuda" else "cpu")  # other GPUs lack decompositions
        here = Adapter({name: tensor.to(weight.device) for name, tensor in adapter.tensors.items()}, adapter.alpha)
        lora, kept = as_lora(here, kernel_size(key[1]), rank, weight)  # on the GPU if the model is there: SVDs are slow
        loras[key] = Adapter({name: tensor.cpu() for name, tensor in lora.tensors.items()}, lora.alpha)
        least = min(least, kept)
    if least < 0.999:
        log.warning("as a plain LoRA of rank %d the weakest layer keeps %.1f%% of its change.", rank, 100 * least)
    return loras


def thumbnail_jpeg(image: Image.Image, pixels: int = 256) -> bytes:
    """Return a JPEG of the image, its longer side `pixels`, for `lora_metadata`; carries no EXIF."""
    small = image.convert("RGB")
    small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def copy_lora(
    lora: Path, folder: str | Path, name: str | None = None, more_metadata: Mapping[str, str] | None = None
) -> Path:
    """Copy a LoRA into an existing folder, such as a client's, whole or not at all.

    Args:
        name: file name of the copy. Default: the same.
        more_metadata: entries added to the file's own.

    Raises:
        ValueError: no such folder.
        DiskError: the disk is full or not writable; an older copy stays.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: make it first, or name the client's LoRA folder.")
    with TensorFile(lora) as file:
        layout = {name: (file.dtypes[name], file.shapes[name]) for name in file.shapes}
        write_tensors(folder / (name or lora.name), layout, file.read, {**file.metadata, **(more_metadata or {})})
    return folder / (name or lora.name)


def write_side_files(
    lora: Path, trigger_phrase: str = "", description: str = "", thumbnail_png: bytes = b"", strength: float = 1.0
) -> list[Path]:
    """Write `<name>.json`, and with an image `<name>.png`, beside a LoRA: A1111, Forge and InvokeAI show them.

    Raises:
        ValueError: the thumbnail is not a PNG.
    """
    if thumbnail_png and thumbnail_png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("the thumbnail must be a PNG.")
    about = {
        "description": description,
        "sd version": "SDXL",
        "activation text": trigger_phrase,
        "preferred weight": strength,
        "negative text": "",
        "notes": "",
    }
    contents = {".json": json.dumps(about, indent=1, ensure_ascii=False).encode()}
    if thumbnail_png:
        contents[".png"] = thumbnail_png
    paths = []
    for suffix, content in contents.items():
        path = lora.with_suffix(suffix)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        temporary.write_bytes(content)
        replace(temporary, path)
        paths.append(path)
    return paths

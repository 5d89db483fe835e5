"""Merging of a LoRA into a base, and extraction of the LoRA that turns one base into another.

Both work tensor by tensor, so memory stays at a few times the largest tensor, whatever the size of the models.
"""

import math
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from sdxl_lora.io.file_system import replace
from sdxl_lora.io.safetensors import TensorFile, write_tensors
from sdxl_lora.lora.formats.adapter import change_shape, delta, in_float64, svd_lora
from sdxl_lora.lora.formats.keys import TARGETS, is_target, kernel_size
from sdxl_lora.lora.formats.reader import LoraFile, read_lora
from sdxl_lora.lora.formats.shapes import why_not_sdxl
from sdxl_lora.models.base_files import scale_of
from sdxl_lora.models.base_weights import BaseWeights
from sdxl_lora.tools.rewrite import check_output, save


def merge(lora: Path, base: Path, output: Path, weight: float, overwrite: bool = False) -> str:
    """Write `base` with `weight` times the LoRA's change added, in the base's layout and dtypes.

    Args:
        lora: any kind of LoRA, DoRA too.
        base: diffusers folder, or a single .safetensors in the original layout.
    Raises:
        ValueError: the LoRA does not fit the base, a weight overflows the base's number format, or the output exists.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight {weight} must be a finite number, such as 1.")
    check_output(output, overwrite and base.is_file())  # a folder is never removed to make room
    if output.exists() and output.samefile(base):
        raise ValueError(f"{output} is the base itself: choose another name.")
    file = read_lora(lora)
    with BaseWeights(base) as weights:
        if missing := [key for key in file.adapters if key not in weights.places]:
            raise ValueError(f"{base} lacks {len(missing)} of the LoRA's modules, such as {' '.join(missing[0])}.")
        _check_shapes(weights, file)
        if weights.is_folder:
            _merge_folder(weights, file, output, weight)
        else:
            if output.suffix != ".safetensors":
                raise ValueError(f"{output} must end in .safetensors, as the base does.")
            merged_from = f"{base.stem}, {lora.stem}:{weight:g}"
            _write_merged(weights, weights.path, output, file, weight, {"modelspec.merged_from": merged_from})
    return "\n".join([f"{output}: {len(file.adapters)} modules merged at weight {weight:g}", *file.left_out])


def _check_shapes(weights: BaseWeights, lora: LoraFile) -> None:
    """Raise ValueError if a change does not fit its weight, before anything is written."""
    for key, adapter in lora.adapters.items():
        path, name, _, count = weights.places[key]
        shape, change = weights.files[path].shapes[name], change_shape(adapter)
        if not shape or change != (shape[0] // count, math.prod(shape[1:])):
            raise ValueError(
                f"{path}: {' '.join(key)} is {shape}, the LoRA's change {change}: "
                f"{why_not_sdxl(lora.adapters) or 'it is for another base'}."
            )


def _merge_folder(weights: BaseWeights, lora: LoraFile, output: Path, weight: float) -> None:
    """Write the weights of UNet and encoders, copy all else, and give the folder its name once it is complete."""
    temporary = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    trained = {path.parent for path in weights.files}
    try:
        for source in sorted(path for path in weights.path.rglob("*") if path.is_file()):
            inside = source.relative_to(weights.path)
            if inside.parts[0].startswith("."):
                continue  # .git, .cache
            target = temporary / inside
            if source in weights.files:
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_merged(weights, source, target, lora, weight, {})
            elif not _is_other_weights(source, weights.path, trained):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_other_weights(path: Path, base: Path, trained: set[Path]) -> bool:
    """Return whether a file holds weights without the LoRA: a merged part's variant or pickle, a whole checkpoint."""
    weights = path.suffix in (".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".onnx", ".onnx_data")
    return weights and (path.parent in trained or path.parent == base)


def _write_merged(
    weights: BaseWeights, source: Path, target: Path, lora: LoraFile, weight: float, metadata: dict[str, str]
) -> None:
    file = weights.files[source]
    if packed := [name for name in file.shapes if scale_of(name, file.shapes)]:
        raise ValueError(
            f"{source} holds scaled fp8, {len(packed)} weights such as {packed[0]}, into which nothing can be merged: "
            "give the base in fp16, bf16 or float32."
        )

    def merged(name: str) -> Tensor:
        tensor = file.read(name)
        for key, i, count in weights.parts.get((source, name), []):
            if key in lora.adapters:
                _add(tensor.chunk(count)[i], lora, key, weight, source)
        return tensor

    layout = {name: (file.dtypes[name], file.shapes[name]) for name in file.shapes}
    kept = {key: value for key, value in file.metadata.items() if "hash" not in key}
    write_tensors(target, layout, merged, {**kept, **metadata}, _opens)


def _add(tensor: Tensor, lora: LoraFile, key: tuple[str, str], weight: float, source: Path) -> None:
    """Add one module's change in place, computed in float32."""
    change = delta(lora.adapters[key], tensor)
    total = (tensor.float() + weight * change.view(tensor.shape)).to(tensor.dtype)
    if not torch.isfinite(total.float()).all():
        raise ValueError(f"{source}: {' '.join(key)} is not finite in {tensor.dtype} with the LoRA: lower the weight.")
    tensor.copy_(total)


def _opens(written: Path) -> None:
    TensorFile(written).close()  # checks the header against the size


def extract(
    tuned: Path,
    base: Path,
    output: Path,
    rank: int,
    energy: float,
    targets: str,
    precision: str,
    device: str,
    overwrite: bool,
    progress=lambda done, total: None,
) -> str:
    """Write the LoRA that comes nearest to `tuned` when added to `base`, by SVD of each layer's difference.

    Args:
        energy: share of each difference to keep where a rank below `rank` suffices; 1 for `rank` everywhere.
        targets: one of TARGETS; layers that do not differ are left out.
    Raises:
        ValueError: a value is out of range, the models do not fit or do not differ, or the output exists.
    """
    if targets not in TARGETS or rank < 1 or not 0 < energy <= 1:
        raise ValueError(f"targets must be one of {', '.join(TARGETS)}, rank >= 1, energy in (0, 1].")
    check_output(output, overwrite)
    adapters, kept_energy, total_energy = {}, 0.0, 0.0
    with BaseWeights(tuned) as after, BaseWeights(base) as before:
        keys = [key for key in after.places if is_target(key[1], targets, kernel_size(key[1]) == 0)]
        for done, key in enumerate(keys):
            new, old = after.weight(key), before.weight(key)
            if new.shape.numel() != old.shape.numel():
                raise ValueError(f"{' '.join(key)} is {tuple(new.shape)} in {tuned} and {tuple(old.shape)} in {base}.")
            change = (new.to(device).float() - old.to(device).float().view(new.shape)).flatten(1)
            if energy_here := in_float64(change).square().sum().item():
                lora, kept = svd_lora(change, kernel_size(key[1]), rank, energy)
                adapters[key] = lora
                kept_energy, total_energy = kept_energy + kept * energy_here, total_energy + energy_here
            progress(done + 1, len(keys))
    if not adapters:
        raise ValueError(f"{tuned} and {base} do not differ in {targets}: there is nothing to extract.")
    save(output, adapters, "kohya", precision, {"modelspec.description": f"extracted at rank {rank}"}, overwrite)
    return f"{output}: {len(adapters)} modules; {kept_energy / total_energy:.2%} of the difference is kept"

"""LoRA files made from LoRA files: another layout, a weighted sum, a lower rank."""

import math
from pathlib import Path

from sdxl_lora.lora.formats.adapter import as_lora, concatenate, truncate
from sdxl_lora.lora.formats.keys import kernel_size
from sdxl_lora.lora.formats.reader import LoraFile, read_lora
from sdxl_lora.lora.formats.shapes import why_not_sdxl
from sdxl_lora.lora.formats.writer import Adapters, save_diffusers, save_kohya, save_peft
from sdxl_lora.models.base_weights import BaseWeights

# Metadata that is no longer true of a rewritten file, such as hashes and ranks.
STALE = ("sshs_", "modelspec.hash", "ss_network_", "ss_output_name", "modelspec.title", "modelspec.architecture")


def convert(
    lora: Path, output: Path, to: str, precision: str, base: Path | None = None, rank: int = 64, overwrite: bool = False
) -> str:
    """Write `lora` in another layout; kinds that it does not support become the nearest LoRA of `rank`.

    Args:
        base: diffusers folder or single file, for a DoRA that becomes a LoRA.
    Returns:
        A line about what was written.
    Raises:
        ValueError: the file is no LoRA, the output exists, or a DoRA's base was not named.
    """
    check_output(output, overwrite)
    if rank < 1:
        raise ValueError(f"rank {rank} must be at least 1.")
    file = sdxl_file(lora)
    kept_kinds = ("lora", "loha", "lokr") if to.startswith("kohya") else ("lora", "dora")
    adapters, least = plain_loras(file, kept_kinds, rank, base)
    save(output, adapters, to, precision, kept_metadata(file), overwrite)
    loss = f"; as plain LoRAs of rank {rank} at least {least:.2%} of each change is kept" if least < 1 else ""
    return "\n".join([f"{output}: {len(adapters)} modules as {to}{loss}", *file.left_out])


def plain_loras(file: LoraFile, kept_kinds: tuple, rank: int, base: Path | None) -> tuple[Adapters, float]:
    """Return the adapters with kinds other than `kept_kinds` made LoRA, and the least share of a change kept.

    A file of several kinds, which no client reads, is converted as a whole.
    """
    kinds = {adapter.kind for adapter in file.adapters.values()}
    if len(kinds) == 1 and kinds <= set(kept_kinds):
        return file.adapters, 1.0
    if base is None and any(adapter.needs_base for adapter in file.adapters.values()):
        raise ValueError(
            f"{file.path} is a DoRA, whose change depends on the base's weights: name it with --base "
            "(a diffusers folder or a single .safetensors)."
        )
    loras, least = {}, 1.0
    weights = BaseWeights(base) if base is not None else None
    try:
        for key, adapter in file.adapters.items():
            weight = weights.weight(key) if weights and adapter.needs_base else None
            loras[key], kept = as_lora(adapter, kernel_size(key[1]), rank, weight)
            least = min(least, kept)
    finally:
        if weights:
            weights.close()
    return loras, least


def combine(
    loras: list[Path], weights: list[float], output: Path, rank: int | None, precision: str, overwrite: bool
) -> str:
    """Write the weighted sum of LoRAs: exact with the sum of their ranks, or the nearest LoRA of `rank`.

    Raises:
        ValueError: not one weight for each LoRA, a file that is no plain LoRA, or the output exists.
    """
    if len(weights) != len(loras) or len(loras) < 2:
        raise ValueError(f"{len(loras)} LoRAs and {len(weights)} weights: give two or more, and a weight for each.")
    if not all(map(math.isfinite, weights)) or (rank is not None and rank < 1):
        raise ValueError(f"weights {weights}, rank {rank}: need finite weights and rank >= 1.")
    files = [plain_file(path) for path in loras]
    summed, least = {}, 1.0
    for key in dict.fromkeys(key for file in files for key in file.adapters):
        own = [
            (file.adapters[key], weight) for file, weight in zip(files, weights, strict=True) if key in file.adapters
        ]
        summed[key] = concatenate(own)
        if rank:
            summed[key], kept = truncate(summed[key], kernel_size(key[1]), rank)
            least = min(least, kept)
    triggers = dict.fromkeys(file.metadata.get("modelspec.trigger_phrase", "") for file in files)
    metadata = {
        "modelspec.trigger_phrase": ", ".join(filter(None, triggers)),
        "modelspec.merged_from": ", ".join(f"{file.path.stem}:{w:g}" for file, w in zip(files, weights, strict=True)),
    }
    save(output, summed, "kohya", precision, {key: value for key, value in metadata.items() if value}, overwrite)
    loss = f"; at least {least:.2%} of each module's change is kept" if rank else ""
    left_out = (f"{file.path.name}: {note}" for file in files for note in file.left_out)
    line = f"{output}: {len(summed)} modules of rank {max(a.lora_rank for a in summed.values())}{loss}"
    return "\n".join([line, *left_out])


def resize(lora: Path, output: Path, rank: int | None, energy: float | None, precision: str, overwrite: bool) -> str:
    """Write the nearest LoRA of `rank`, or of the smallest ranks that keep `energy` of each module's change.

    Within a component, ranks are padded with zeros to a common one, which diffusers needs.

    Raises:
        ValueError: neither rank nor energy, values out of range, no plain LoRA, or the output exists.
    """
    if (rank is None) == (energy is None):
        raise ValueError("give either --rank or --energy.")
    if (rank is not None and rank < 1) or (energy is not None and not 0 < energy < 1):
        raise ValueError(f"rank {rank}, energy {energy}: need rank >= 1, or an energy between 0 and 1.")
    file = plain_file(lora)
    resized, least = {}, 1.0
    for key, adapter in file.adapters.items():
        small, kept = truncate(
            adapter, kernel_size(key[1]), min(rank or adapter.lora_rank, adapter.lora_rank), energy or 1.0
        )
        resized[key], least = small, min(least, kept)
    save(output, resized, "kohya", precision, kept_metadata(file), overwrite)
    before, after = (max(a.lora_rank for a in adapters.values()) for adapters in (file.adapters, resized))
    line = f"{output}: rank {before} to {after}; at least {least:.2%} of each module's change is kept"
    return "\n".join([line, *file.left_out])


def sdxl_file(path: Path) -> LoraFile:
    """Read a LoRA file for SDXL; ValueError for another model's, which would otherwise be written as SDXL's."""
    file = read_lora(path)
    if why := why_not_sdxl(file.adapters):
        raise ValueError(f"{path}: {why}.")
    return file


def plain_file(path: Path) -> LoraFile:
    """Read a file of plain LoRAs; ValueError, with the remedy, for other kinds."""
    file = sdxl_file(path)
    if kinds := {adapter.kind for adapter in file.adapters.values()} - {"lora"}:
        raise ValueError(
            f"{path} is a {', '.join(sorted(kinds))}: make it a LoRA first (convert --to diffusers --rank N)."
        )
    return file


def kept_metadata(file: LoraFile) -> dict[str, str]:
    kept = {key: value for key, value in file.metadata.items() if key.startswith(("ss_", "modelspec."))}
    return {key: value for key, value in kept.items() if not key.startswith(STALE)}


def check_output(output: Path, overwrite: bool) -> None:
    """Raise ValueError if the output exists, unless `overwrite`, or if its folder does not."""
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists: choose another name, or pass --overwrite.")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent} is not a folder: make it first.")


def save(output: Path, adapters: Adapters, to: str, precision: str, metadata: dict[str, str], overwrite: bool) -> None:
    check_output(output, overwrite)
    if to != "peft" and output.suffix != ".safetensors":
        raise ValueError(f"{output} must end in .safetensors.")
    if to == "peft":
        save_peft(output, adapters, precision)
    elif to == "diffusers":
        save_diffusers(output, adapters, precision, metadata)
    else:
        save_kohya(output, adapters, precision, metadata, diffusers_names=to == "kohya-diffusers")

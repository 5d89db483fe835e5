"""Description of a LoRA file: content, clients that load it, and faults. Writes nothing."""

import re
from collections import defaultdict
from pathlib import Path

import torch

from sdxl_lora.lora.formats.adapter import Adapter, norm
from sdxl_lora.lora.formats.keys import COMPONENTS
from sdxl_lora.lora.formats.reader import LoraFile, read_lora
from sdxl_lora.lora.formats.shapes import why_not_sdxl
from sdxl_lora.models.base_files import Tensors
from sdxl_lora.models.base_kinds import PICKLES, kind_of_file, kind_of_folder

OUTLIER = 20  # multiple of the median size of a component's changes
CLIENTS = ("diffusers", "ComfyUI", "A1111", "Forge", "InvokeAI")


def show_any(path: str, every_module: bool, configs, vae, revision, variant) -> str:
    """Return a page about a LoRA or a base, whichever it is.

    Raises:
        ValueError: it is neither, or cannot be read.
    """
    from sdxl_lora.models.base_report import look_at  # takes seconds to import
    from sdxl_lora.models.base_source import Base

    if is_base(path):
        return "\n".join(look_at(Base(path, vae, configs, revision, variant)).lines())
    return show(read_lora(Path(path)), every_module)


def is_base(path: str) -> bool:
    """Return whether to treat a file, folder or Hub id as a base, that is, as anything but a LoRA or a non-model."""
    place = Path(path)
    if place.is_dir():
        return kind_of_folder(place) != "a LoRA's folder"
    if not place.exists():
        return "/" in path and place.suffix.lower() not in (".safetensors", *PICKLES) and not place.parent.is_dir()
    if place.suffix.lower() != ".safetensors":
        return False
    with Tensors([place]) as tensors:
        return kind_of_file(tensors) not in ("a LoRA", "a textual inversion") and len(list(tensors)) > 0


def show(file: LoraFile, every_module: bool = False) -> str:
    """Return a page about the file: modules, ranks, alphas, size of the change per block, clients, metadata."""
    kinds = sorted({adapter.kind for adapter in file.adapters.values()})
    lines = [f"{file.path.name}: {file.layout}, {', '.join(kinds)}, {len(file.adapters)} modules"]
    lines += [f"keys such as {file.keys[0]}", ""]
    for component, adapters in by_component(file).items():
        ranks, alphas, scales = (_span(_distinct(adapters.values(), field)) for field in ("rank", "alpha", "scale"))
        lines.append(f"{component}: {len(adapters)} modules, rank {ranks}, alpha {alphas}, strength {scales}")
        blocks = defaultdict(list)
        for name, adapter in adapters.items():
            blocks[block_of(name)].append(norm(adapter))
        width = max(map(len, blocks))
        for block, norms in blocks.items():
            total = sum(value**2 for value in norms) ** 0.5
            lines.append(f"  {block:{width}}  {len(norms):3} modules  norm of the change {total:.4g}")
        if every_module:
            lines += [
                f"    {name}  rank {adapter.rank}  alpha {adapter.alpha:g}  norm {norm(adapter):.4g}"
                for name, adapter in adapters.items()
            ]
    if any(adapter.needs_base for adapter in file.adapters.values()):
        lines.append("  (norms of DoRA without its magnitudes, which need the base)")
    if why := why_not_sdxl(file.adapters):
        lines.append(f"WARNING: {why}")
    lines += file.left_out
    lines += ["", *(f"{client}: {verdict}" for client, verdict in clients(file).items()), ""]
    lines += [f"{key}: {_short(value)}" for key, value in sorted(file.metadata.items())] or ["no metadata"]
    return "\n".join(lines)


def by_component(file: LoraFile) -> dict[str, dict[str, Adapter]]:
    parts = {c: {name: a for (part, name), a in file.adapters.items() if part == c} for c in COMPONENTS}
    return {component: adapters for component, adapters in parts.items() if adapters}


def block_of(name: str) -> str:
    """Return `down_blocks.1`, `mid_block`, …; all layers of an encoder count as one block."""
    found = re.match(r"(down_blocks|up_blocks)\.\d+|mid_block|text_model\.encoder\.layers", name)
    return found[0] if found else name


def _distinct(adapters, field: str) -> list:
    return sorted({getattr(adapter, field) for adapter in adapters}, key=lambda value: (value is None, value))


def _span(values: list) -> str:
    words = [f"{value:g}" if value is not None else "none" for value in values]
    return ", ".join(words) if len(words) <= 5 else f"{words[0]} to {words[-1]} ({len(words)} values)"


def _short(value: str) -> str:
    return value if len(value) <= 100 else f"{value[:80]}… ({len(value)} characters)"


def clients(file: LoraFile) -> dict[str, str]:
    """Return for each client "loads", or what it does instead, as observed with the clients' own loaders."""
    if why_not_sdxl(file.adapters):
        return dict.fromkeys(CLIENTS, "not with SDXL")
    kinds = {adapter.kind for adapter in file.adapters.values()}
    kohya = file.layout.startswith("kohya")
    verdict = dict.fromkeys(CLIENTS, "loads")
    if not kohya:
        verdict |= dict.fromkeys(CLIENTS[1:], "not sure: convert --to kohya")
    if file.layout == "kohya-diffusers":
        verdict |= dict.fromkeys(CLIENTS[1:], "probably; to be sure: convert --to kohya")
    if file.layout == "comfyui":
        verdict |= {"ComfyUI": "loads", "diffusers": "not sure: convert --to diffusers"}
    if file.layout == "peft":
        verdict["diffusers"] = "no, PEFT does: convert --to diffusers"
    if kohya and any(key.startswith(("lora_te1_encoder", "lora_te2_encoder")) for key in file.keys):
        verdict |= dict.fromkeys(CLIENTS, "drops the text encoders (no text_model in their names): convert --to kohya")
    if kohya and file.metadata.get("ss_base_model_version", "")[:4] != "sdxl":
        verdict["A1111"] = "hides it, for want of ss_base_model_version: convert --to kohya"
    if trouble := _trouble_in_diffusers(file, kinds, kohya):
        verdict["diffusers"] = trouble
    if "dora" in kinds:
        wrong = "wrong strength: convert --to kohya --base (a plain LoRA)" if kohya else "no: convert --to kohya --base"
        verdict |= dict.fromkeys(CLIENTS[1:], wrong)
    return verdict


def _trouble_in_diffusers(file: LoraFile, kinds: set[str], kohya: bool) -> str:
    if kinds - {"lora", "dora"}:
        return "no: convert --to diffusers --rank N"
    if kohya and "dora" in kinds:
        return "drops the magnitudes: convert --to diffusers"
    if kohya and "lora_adapter_metadata" in file.metadata:
        return "raises (lora_adapter_metadata in the header): convert --to kohya"
    if not kohya and any(key.endswith(".alpha") for key in file.keys):
        return "raises (.alpha in this layout): convert --to diffusers"
    for component, adapters in by_component(file).items():
        if kohya and len(_distinct(adapters.values(), "rank")) + len(_distinct(adapters.values(), "alpha")) > 2:
            return f"wrong strength (several ranks or alphas in {component}): convert --to kohya"
        parts = {name.rsplit(".", 1)[1] for name in adapters if "self_attn" in name}
        if component != "unet" and len(parts) < 4:
            return f"raises ({component} without all of q, k, v, out): convert --to kohya"
    return "loads"


def check(file: LoraFile) -> tuple[list[str], list[str]]:
    """Return errors (another model, non-finite values, no strength, no change at all) and warnings (zero modules,
    outliers among the changes, omissions of the reader)."""
    why = why_not_sdxl(file.adapters)
    errors, warnings = [why] if why else [], list(file.left_out)
    for component, adapters in by_component(file).items():
        sizes = {}
        for name, adapter in adapters.items():
            broken = [part for part, tensor in adapter.tensors.items() if not torch.isfinite(tensor).all()]
            if broken:
                errors.append(f"{component} {name}: {', '.join(broken)} holds NaN or infinity")
            elif adapter.rank is not None and not (0 < abs(adapter.alpha) < float("inf")):
                effect = "leaves it without effect" if adapter.alpha == 0 else "is not a strength"
                errors.append(f"{component} {name}: alpha {adapter.alpha:g} {effect}")
            else:
                sizes[name] = norm(adapter)
        zero = [name for name, size in sizes.items() if size == 0]
        if zero and len(zero) == len(adapters):
            errors.append(f"{component}: all {len(zero)} modules are zero, so it changes nothing")
        elif zero:
            warnings.append(f"{component}: {len(zero)} of {len(adapters)} modules are zero, such as {zero[0]}")
        moved = sorted(size for size in sizes.values() if size)
        median = moved[len(moved) // 2] if moved else 0
        warnings += [
            f"{component} {name}: changes {size / median:.0f} times as much as the median module"
            for name, size in sizes.items()
            if size > OUTLIER * median
        ]
    return errors, warnings

"""Report on a base before any work: kind, prediction and schedule, VAE, precision, missing and unknown weights.

Reads headers and configs, not weights. loading.check_base refuses by it, `python -m sdxl_lora.tools show` prints it.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline

from sdxl_lora.config.sources import check_source
from sdxl_lora.errors import ConfigError
from sdxl_lora.io.safetensors import DTYPE_NAMES
from sdxl_lora.models.base_faults import misfit, schedule_fault, vae_file_refusal, what_is_missing
from sdxl_lora.models.base_files import Fit, Tensors, fit, shown, unknown_names
from sdxl_lora.models.base_kinds import (
    PICKLES,
    SDXL,
    kind_of_file,
    kind_of_folder,
    kind_of_unet,
    not_by_ddpm,
    predicted_by,
    told_by_file,
    unsupported_schedule,
)
from sdxl_lora.models.base_source import (
    MODELS,
    Base,
    config_errors,
    empty_model,
    source_of,
    weight_files,
)
from sdxl_lora.models.original_names import PREFIXES

ALL_PREFIXES = tuple(prefix for prefixes in PREFIXES.values() for prefix in prefixes)
TOKENIZERS = ("tokenizer", "tokenizer_2")


@dataclass
class Part:
    """One model: the number of values in its config, the dtypes in the files, and their fit."""

    values: int
    dtypes: Counter = field(default_factory=Counter)
    scaled: int = 0
    fit: Fit | None = None


@dataclass
class BaseReport:
    """Facts about a base.

    refusal: a sentence on why it cannot be trained; None if it can.
    bare: parts of a folder that have a config but no weights.
    notes: sentences on harmless oddities.
    prediction: epsilon, v_prediction, flow, or a description of what cannot be trained; "" if unknown.
    vae: the VAE's config.
    """

    path: str
    kind: str = SDXL
    layout: str = "diffusers folder"
    prediction: str = ""
    told_by: str = ""
    scheduler: str = ""
    is_zero_snr: bool = False
    channels: int | None = None
    vae: dict = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    harmless: int = 0
    bare: list[str] = field(default_factory=list)
    refusal: str | None = None
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        rows = [("is", f"{self.kind}, {self.layout}")]
        zero_snr = ", zero terminal SNR" if self.is_zero_snr else ""
        rows.append(("predicts", f"{self.prediction or 'unknown'}{zero_snr} ({self.told_by or 'its configs say'})"))
        if self.scheduler:
            rows.append(("scheduler", self.scheduler))
        if self.channels is not None:
            rows.append(("UNet takes", f"{self.channels} channels"))
        if self.vae:
            names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
            found = [f"{name} {self.vae[name]}" for name in names if self.vae.get(name) is not None]
            rows.append(("VAE", f"{self.vae.get('latent_channels')} channels, {', '.join(found)}"))
        for name, part in self.parts.items():
            kinds = ", ".join(f"{DTYPE_NAMES[dtype]} in {count} tensors" for dtype, count in part.dtypes.most_common())
            scaled = f", {part.scaled} of them scaled" if part.scaled else ""
            rows.append((name, f"{part.values:,} values; {kinds or 'weights not on this machine'}{scaled}"))
        missing = [name for part in self.parts.values() if part.fit for name in part.fit.missing]
        missing += [f"all weights of {part}" for part in self.bare]
        rows.append(("missing", shown(missing) or "nothing"))
        rows.append(("unknown", shown(self.unknown) or "nothing"))
        if self.harmless:
            rows.append(("not needed", f"{self.harmless} tensors (averages, position ids, marks)"))
        refusal = self.refusal or ("its weights are missing" if self.bare else None)
        rows.append(("training", f"no: {refusal}" if refusal else "yes"))
        rows += [("note", note) for note in self.notes]
        return [self.path, *(f"  {heading:14} {text}" for heading, text in rows)]


def look_at(base: Base, with_configs: bool = True) -> BaseReport:
    """Report on a base, from headers and configs.

    Args:
        with_configs: False to use only a file's header or a folder's contents.
    Raises:
        ConfigError: the base is missing or unreadable, or its configs need a connection.
    """
    check_source(base.path, "pretrained_model_name_or_path", "base model")
    for path, setting, what in (
        (base.vae_path, "pretrained_vae_model_name_or_path", "VAE"),
        (base.config_path, "pretrained_config_name_or_path", "folder with configs"),
    ):
        if path is not None:
            check_source(path, setting, what)
    if Path(base.path).suffix.lower() in (".safetensors", *PICKLES) and not Path(base.path).exists():
        raise ConfigError(f"no such base model: {base.path}")
    report = BaseReport(base.path)
    look = look_at_file if base.is_file else look_at_folder
    look(base, report)
    if report.refusal is None and with_configs:
        look_at_models(base, report)
    return report


def look_at_file(base: Base, report: BaseReport) -> None:
    """Report on a single file by its tensor names."""
    path = Path(base.path)
    if path.suffix.lower() != ".safetensors":
        raise ConfigError(
            f"{path} is not a .safetensors file; pickles (.ckpt, .pt, .bin) can run code and are not loaded"
        )
    report.layout = "one file in the original layout"
    with Tensors([path]) as tensors:
        report.kind = kind_of_file(tensors)
        told, report.is_zero_snr, report.told_by = told_by_file(tensors, tensors.metadata)
        report.prediction = told or ""
        has_vae = any(name.startswith("first_stage_model.") for name in tensors)
        entry = "model.diffusion_model.input_blocks.0.0.weight"
        if entry in tensors and len(tensors.shape(entry)) == 4:
            report.channels = tensors.shape(entry)[1]
    if report.kind == SDXL and report.channels is not None and (found := kind_of_unet(report.channels)):
        report.kind = found
    if report.kind != SDXL:
        report.refusal = f"{path} is {report.kind}, it must be a whole SDXL base in the original layout"
    elif report.prediction == "EDM":
        report.refusal = not_by_ddpm(base, report.prediction)
    elif not has_vae and base.vae_path is None:
        report.refusal = (
            f"{path} is an SDXL checkpoint without its VAE: give one with --pretrained_vae_model_name_or_path"
        )
    elif report.prediction and report.told_by.startswith("metadata"):
        report.notes.append(f"{path} says in its {report.told_by} what it predicts: {report.prediction}")


def look_at_folder(base: Base, report: BaseReport) -> None:
    """Report on a diffusers folder or Hub id by its layout."""
    folder = Path(base.path)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        report.kind = report.refusal = kind_of_folder(folder)
        report.refusal = f"{folder} is {report.kind}"
        return
    report.layout = "diffusers folder" if folder.is_dir() else "on the Hub"


def look_at_pipeline(base: Base, report: BaseReport) -> None:
    """Add the contents of model_index.json and the scheduler's config."""
    with config_errors(base, "the configs"):
        index = StableDiffusionXLPipeline.load_config(base.configs, revision=base.hub_arguments("")["revision"])
        found = index.get("_class_name", "unknown")
    if "StableDiffusionXL" not in found:
        report.kind = f"a {found}"
        report.refusal = f"{base.configs} is a {found}, it must be a StableDiffusionXLPipeline"
        return
    if index.get("text_encoder", [None])[0] is None:
        report.kind = "the SDXL refiner"
        report.refusal = f"{base.configs} has one text encoder: it is the SDXL refiner, training needs the base"
        return
    folder = Path(base.configs)
    if folder.is_dir():
        needed: list[tuple[str, ...]] = [(f"{name}/vocab.json", f"{name}/tokenizer.json") for name in TOKENIZERS]
        needed += [("scheduler/scheduler_config.json",), *((f"{name}/config.json",) for name in MODELS)]
        lacking = [names[0] for names in needed if not any((folder / name).is_file() for name in names)]
        if base.vae_path is not None and not base.has_vae_file and "vae/config.json" in lacking:
            lacking.remove("vae/config.json")
        if lacking:
            report.refusal = f"{folder} is incomplete: it lacks {', '.join(lacking)}"
            return
    with config_errors(base, "the scheduler's config"):
        config = dict(DDPMScheduler.load_config(base.configs, **base.hub_arguments("scheduler")))
    report.scheduler = config.get("_class_name", "unknown")
    if not report.prediction:
        report.prediction, report.told_by = predicted_by(config), "the scheduler's config"
        report.is_zero_snr = bool(config.get("rescale_betas_zero_snr"))
    if unsupported := unsupported_schedule(config):
        report.prediction, report.refusal = unsupported, not_by_ddpm(base, unsupported)
    elif fault := schedule_fault(config):
        report.refusal = f"the scheduler's config of {base.configs} {fault}"


def look_at_models(base: Base, report: BaseReport) -> None:
    """Add the models' configs and the headers of their weights, as far as these are on this machine."""
    look_at_pipeline(base, report)
    if report.refusal:
        return
    models = {part: empty_model(base, part) for part in MODELS}
    unet, vae = models["unet"].config, models["vae"].config
    report.vae, report.channels = dict(vae), report.channels or unet.in_channels
    report.refusal = misfit(base, models) or (vae_file_refusal(base.vae_path) if base.has_vae_file else None)
    if report.refusal:
        return
    used: dict[Path, set[str]] = {}
    for part, model in models.items():
        look_at_part(base, part, model, report, used)
    for path, names in used.items():
        with Tensors([path]) as tensors:
            others = [name for name in tensors if name not in names and not is_of_another_vae(base, path, name)]
            unknown = unknown_names(others)
            report.unknown += unknown
            report.harmless += len(others) - len(unknown)
    if report.unknown:
        report.notes.append(f"{base.path} has {len(report.unknown)} weights that are not used: {shown(report.unknown)}")
    report.refusal = what_is_missing(base, {name: part.fit for name, part in report.parts.items() if part.fit})


def is_of_another_vae(base: Base, path: Path, name: str) -> bool:
    """Return whether a tensor is unused because the VAE has a file of its own, or is taken from another base's."""
    if base.vae_path is None:
        return False
    is_of_vae = name.startswith(PREFIXES["vae"])
    return (
        is_of_vae if str(path) == base.path else base.has_vae_file and name.startswith(ALL_PREFIXES) and not is_of_vae
    )


def look_at_part(base: Base, part: str, model: torch.nn.Module, report: BaseReport, used: dict) -> None:
    """Compare a model with the headers of its files; record the names used from each file in `used`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    report.parts[part] = found = Part(sum(map(math.prod, shapes.values())))
    files = weight_files(base, part, download=False)
    if not files:
        report.bare += [part] if Path(source_of(base, part)[0]).is_dir() else []
        return
    note = f"{base.path} only has weights of variant fp16: they are used"
    if not base.variant and ".fp16" in files[0].name and not base.is_file and note not in report.notes:
        report.notes.append(note)
    with Tensors(files) as tensors:
        found.fit = fit(part, shapes, tensors, levels_of(model))
        found.dtypes = Counter(tensors.dtype(name) for name in found.fit.used if not name.endswith("scale_weight"))
        found.scaled = sum(tensors.scale_of(name) is not None for name in found.fit.used)
        for name in found.fit.used:
            used.setdefault(tensors.files[name].path, set()).add(name)
        for path in files:
            used.setdefault(path, set())


def levels_of(model: torch.nn.Module) -> int:
    """Return the number of block sizes of a model; 0 if it has none."""
    return len(getattr(model.config, "block_out_channels", ()))

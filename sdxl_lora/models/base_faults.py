"""Reasons why a complete base cannot be trained: unfit configs, invalid numbers, missing weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler

from sdxl_lora.errors import ConfigError
from sdxl_lora.models.base_files import Fit, Tensors, shown
from sdxl_lora.models.base_kinds import PICKLES, SDXL, kind_of_file, kind_of_unet
from sdxl_lora.models.base_source import SDXL_BASE, Base, Model, source_of
from sdxl_lora.models.latents import check_normalisation
from sdxl_lora.models.original_names import PREFIXES

NO_PICKLES = "pickles (.ckpt, .pt, .bin) can run code and are not loaded"


def misfit(base: Base, models: dict[str, Model]) -> str | None:
    """Return the reason why the models of these configs are not an SDXL base; None if they are."""
    unet, vae = models["unet"].config, models["vae"].config
    if kind := kind_of_unet(unet.in_channels):
        return f"{base.configs} is {kind}: training needs an SDXL base, whose UNet takes 4"
    widths = [models[name].config.hidden_size for name in ("text_encoder", "text_encoder_2")]
    if unet.addition_embed_type != "text_time" or unet.cross_attention_dim != sum(widths):
        return (
            f"{base.configs} is not an SDXL base: its UNet reads {unet.cross_attention_dim} numbers per token, its "
            f"text encoders give {widths[0]} and {widths[1]}"
        )
    source = base.vae_path or base.path
    if vae.latent_channels != unet.in_channels:
        return f"{source} has a VAE of {vae.latent_channels} channels, the UNet takes {unet.in_channels}"
    try:
        check_normalisation(vae)
    except ConfigError as error:
        return f"{source}: {error}"
    return None


def schedule_fault(config: Mapping) -> str | None:
    """Return the fault in a scheduler config's numbers; None if it is valid or has no betas, as for flows."""
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        return f"has num_train_timesteps {steps!r}, it must be a whole number above 0: SDXL's is 1000"
    if config.get("trained_betas") is None and config.get("beta_schedule") is None:
        return None
    try:
        kept = DDPMScheduler.from_config(dict(config)).alphas_cumprod
    except Exception as error:  # diffusers raises many classes
        names = ("beta_schedule", "beta_start", "beta_end", "trained_betas")
        given = ", ".join(f"{name} {brief(config[name])}" for name in names if config.get(name) is not None)
        return f"gives no noise schedule with {given} ({' '.join(str(error).split())})"
    if len(kept) != steps:
        return f"has {len(kept)} trained_betas, there must be one for each of its {steps} timesteps"
    if not (kept.isfinite().all() and kept.min() >= 0 and kept.max() <= 1 and (kept.diff() <= 0).all()):
        return "has betas that are not a noise schedule: each must be from 0 to 1"
    return None


def brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def vae_file_refusal(path: str | None) -> str | None:
    """Return the reason why a file given as a VAE is not one; None if it is."""
    if Path(str(path)).suffix.lower() in PICKLES:
        return f"{path} is not a .safetensors file; {NO_PICKLES}"
    with Tensors([Path(str(path))]) as tensors:
        if any(name.startswith(PREFIXES["vae"]) for name in tensors):
            return None
        kind = kind_of_file(tensors)
    if kind == "a VAE alone":
        return None
    kind = "an SDXL checkpoint without its VAE" if kind == SDXL else kind
    return f"{path} is {kind}, it must be a VAE, or a checkpoint that has one"


def what_is_missing(base: Base, fits: Mapping[str, Fit]) -> str | None:
    """Return a sentence naming weights that the files lack, or that do not fit, by part; None if all are there."""
    lacking = {part: found.missing for part, found in fits.items() if found.missing}
    if lacking:
        sources = sorted({source_of(base, part)[0] for part in lacking})
        said = "; ".join(f"{len(names)} of {part}: {shown(names)}" for part, names in lacking.items())
        hint = ""
        if base.is_file and len(lacking.get("unet", [])) > 20:
            configs = base.config_path or SDXL_BASE
            hint = (
                f". It may be a smaller UNet than that of {configs} (SSD-1B, Vega): give its own folder or Hub id with "
                "--pretrained_config_name_or_path"
            )
        return f"{' and '.join(sources)} lacks weights, {said}{hint}"
    for part, found in fits.items():
        source = source_of(base, part)[0]
        if found.misshapen:
            return f"{source} does not fit the configs of {base.configs}: {shown(found.misshapen, 2)}"
        if found.packed:
            return (
                f"{source} has whole numbers without a scale for weights of {part}, in a packing that is not known "
                f"here: {shown(found.packed)}; give the base in fp16, bf16 or fp8"
            )
    return None

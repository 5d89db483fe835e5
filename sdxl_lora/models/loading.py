"""SDXL's parts from a diffusers folder, a Hub id, or one .safetensors file in the original layout.

Each part is loaded by itself, so that encoders and UNet need not be in memory together. Only safetensors are read:
a pickle can run code. Knows no LoRA.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from sdxl_lora.config.sections.model import ModelConfig
from sdxl_lora.errors import ConfigError

for library_logging in (diffusers_logging, transformers_logging):
    library_logging.disable_progress_bar()  # of local loads, which take seconds; downloads keep theirs

ENCODERS = ("text_encoder", "text_encoder_2")
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by mixed_precision
SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"


@dataclass(frozen=True)
class Base:
    """Where a base model's parts are found.

    path: diffusers folder, Hub id, or one .safetensors file.
    vae_path: diffusers folder or Hub id of another VAE.
    config_path: for one file, the diffusers folder or Hub id with its configs and tokenizers.
    """

    path: str
    vae_path: str | None = None
    config_path: str | None = None
    revision: str | None = None
    variant: str | None = None

    @property
    def is_file(self) -> bool:
        return Path(self.path).is_file()

    @property
    def configs(self) -> str:
        """Folder or Hub id with the configs and tokenizers."""
        return (self.config_path or SDXL_BASE) if self.is_file else self.path

    def hub_arguments(self, subfolder: str, weights: bool = True) -> dict:
        arguments = {"subfolder": subfolder, "revision": None if self.is_file else self.revision}
        return {**arguments, "variant": self.variant, "use_safetensors": True} if weights else arguments


def base_of(model: ModelConfig) -> Base:
    return Base(
        model.pretrained_model_name_or_path,
        model.pretrained_vae_model_name_or_path,
        model.pretrained_config_name_or_path,
        model.revision,
        model.variant,
    )


def check_base(base: Base) -> None:
    """Look at headers and configs only.

    Raises:
        ConfigError: not an SDXL base, a pickle, not found, or not to be had without a connection.
    """
    if base.is_file:
        check_file(Path(base.path))
    elif Path(base.path).suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        raise ConfigError(f"no such base model: {base.path}")
    with _config_errors(base, "its configs"):
        pipeline = StableDiffusionXLPipeline.load_config(base.configs, revision=None if base.is_file else base.revision)
    found = pipeline.get("_class_name", "unknown")
    if "StableDiffusionXL" not in found:
        raise ConfigError(f"{base.configs} is a {found}, it must be a StableDiffusionXLPipeline")
    if pipeline.get("text_encoder", [None])[0] is None:
        raise ConfigError(f"{base.configs} has one text encoder: it is the SDXL refiner, training needs the base")


def check_file(path: Path) -> None:
    """Raises ConfigError unless the file's tensor names are those of an SDXL base in the original layout."""
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"{path} is not a .safetensors file; pickles (.ckpt, .pt, .bin) can run code and are not loaded"
        )
    names = tensor_names(path)

    def has(part: str) -> bool:
        return any(part in name for name in names)

    if has("lora_") or has(".lora"):
        found = "a LoRA"
    elif has("cond_stage_model."):
        found = "a Stable Diffusion 1.x or 2.x checkpoint"
    elif has("conditioner.embedders.0.model.") and not has("conditioner.embedders.1.model."):
        found = "the SDXL refiner"
    elif not has("model.diffusion_model.") or not has("conditioner.embedders.1.model."):
        found = f"something else (its first tensors: {', '.join(names[:3]) or 'none'})"
    elif not has("first_stage_model."):
        found = "an SDXL checkpoint without its VAE"
    else:
        return
    raise ConfigError(f"{path} is {found}, it must be a whole SDXL base in the original layout")


def tensor_names(path: Path) -> list[str]:
    """Names in a safetensors file; ConfigError where it is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a readable .safetensors file: {error}") from None


def part_files(base: Base, subfolder: str) -> list[Path]:
    """Files that hold a part's weights and config on this disk; [] where they cannot be told without a connection."""
    if subfolder == "vae" and base.vae_path is not None:
        source, subfolder = base.vae_path, "vae" if (Path(base.vae_path) / "vae").is_dir() else ""
    elif base.is_file:
        return [Path(base.path)]
    else:
        source = base.path
    try:
        folder = (
            Path(source)
            if Path(source).is_dir()
            else Path(snapshot_download(source, revision=base.revision, local_files_only=True))
        )
    except (OSError, ValueError):
        return []
    return sorted(path for path in (folder / subfolder).iterdir() if path.suffix in (".json", ".safetensors"))


def load_vae(base: Base) -> AutoencoderKL:
    """The VAE in float32, frozen: SDXL's overflows in half precision."""
    with _config_errors(base, "the VAE"):
        if base.vae_path is not None:
            subfolder = {"subfolder": "vae"} if (Path(base.vae_path) / "vae").is_dir() else {}
            vae = AutoencoderKL.from_pretrained(
                base.vae_path, use_safetensors=True, torch_dtype=torch.float32, **subfolder
            )
        elif base.is_file:
            vae = AutoencoderKL.from_single_file(
                base.path, config=base.configs, subfolder="vae", torch_dtype=torch.float32
            )
        else:
            vae = AutoencoderKL.from_pretrained(base.path, torch_dtype=torch.float32, **base.hub_arguments("vae"))
    return vae.requires_grad_(False).eval()


def load_text_parts(base: Base, dtype: torch.dtype):
    """(tokenizers, text_encoders), two of each, frozen."""
    return load_tokenizers(base), load_text_encoders(base, dtype)


def load_text_encoders(base: Base, dtype: torch.dtype) -> list[torch.nn.Module]:
    """Both, frozen."""
    with _config_errors(base, "the text encoders"):
        if base.is_file:
            pipeline = StableDiffusionXLPipeline.from_single_file(
                base.path, config=base.configs, torch_dtype=dtype, unet=None, vae=None, scheduler=None
            )
            encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
        else:
            encoders = [
                loader.from_pretrained(base.path, dtype=dtype, **base.hub_arguments(name))
                for loader, name in ((CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2"))
            ]
    return [encoder.requires_grad_(False).eval() for encoder in encoders]


def load_unet(base: Base, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet, frozen."""
    with _config_errors(base, "the UNet"):
        if base.is_file:
            unet = UNet2DConditionModel.from_single_file(
                base.path, config=base.configs, subfolder="unet", torch_dtype=dtype
            )
        else:
            unet = UNet2DConditionModel.from_pretrained(base.path, torch_dtype=dtype, **base.hub_arguments("unet"))
    return unet.requires_grad_(False)


def models_without_weights(base: Base) -> dict[str, torch.nn.Module]:
    """All four models from their configs alone, on the meta device: names and shapes, no memory."""
    with _config_errors(base, "the configs"), torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_model_config(UNet2DConditionModel, base, "unet"))
        vae_base = Base(base.vae_path) if base.vae_path is not None else base
        flat = base.vae_path is not None and not (Path(base.vae_path) / "vae").is_dir()
        vae = AutoencoderKL.from_config(_model_config(AutoencoderKL, vae_base, "" if flat else "vae"))
        encoders = {
            name: model(model.config_class.from_pretrained(base.configs, **base.hub_arguments(name, weights=False)))
            for name, model in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection))
        }
    return {"unet": unet, **encoders, "vae": vae}


def _model_config(model_class, base: Base, subfolder: str) -> dict:
    arguments = base.hub_arguments(subfolder, weights=False)
    return model_class.load_config(base.configs, **{name: value for name, value in arguments.items() if value})


def load_tokenizers(base: Base) -> list[CLIPTokenizer]:
    names = ("tokenizer", "tokenizer_2")
    return [CLIPTokenizer.from_pretrained(base.configs, **base.hub_arguments(name, weights=False)) for name in names]


def load_schedulers(
    base: Base, prediction_type: str | None = None, zero_terminal_snr: bool = False
) -> tuple[DDPMScheduler, EulerDiscreteScheduler]:
    """The schedule to train with, and one of the same betas to draw with.

    SDXL's config names an Euler scheduler, whose add_noise is x + sigma n: training needs DDPM's mix.
    A v-prediction model in one file says so by a tensor named v_pred (and ztsnr for zero terminal SNR).
    With zero terminal SNR the last timestep is noise alone; drawing then starts there, by trailing timesteps
    (arXiv:2305.08891).

    Raises:
        ConfigError: zero terminal SNR for a model that predicts epsilon.
    """
    with _config_errors(base, "the scheduler's config"):
        config = dict(DDPMScheduler.load_config(base.configs, **base.hub_arguments("scheduler", weights=False)))
    names = tensor_names(Path(base.path)) if base.is_file else []
    if "v_pred" in names:
        config |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in names}
    if prediction_type is not None:
        config["prediction_type"] = prediction_type
    if zero_terminal_snr:
        config["rescale_betas_zero_snr"] = True
        if config.get("prediction_type", "epsilon") == "epsilon":
            raise ConfigError(
                "zero_terminal_snr needs a base that predicts v: noise alone says nothing of a picture. "
                "Leave it out, or give --prediction_type v_prediction if that is what the base was trained for."
            )
    if config.get("rescale_betas_zero_snr"):
        config["timestep_spacing"] = "trailing"
    return DDPMScheduler.from_config(config), EulerDiscreteScheduler.from_config(config)


def force_zeros_for_empty_prompt(base: Base) -> bool:
    """Does the base mean zeros, not the encoded empty text, when no prompt is given?"""
    return bool(StableDiffusionXLPipeline.load_config(base.configs).get("force_zeros_for_empty_prompt", True))


@contextlib.contextmanager
def _config_errors(base: Base, part: str):
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"cannot load {part} of {base.path}: {error}\n"
            "Without a connection, give local paths: --pretrained_model_name_or_path, and for a single .safetensors "
            "file also --pretrained_config_name_or_path."
        ) from error

"""Load SDXL's parts from a diffusers folder, a Hub id, or one .safetensors file in the original layout.

Each part is loaded separately, so that encoders and UNet need not be in memory together. base_source.py locates the
parts and base_report.py identifies them. Knows no LoRA.
"""

import warnings
from collections.abc import Mapping
from typing import TypeAlias

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from sdxl_lora.config.sections.model import ModelConfig
from sdxl_lora.config.sections.objective import ObjectiveConfig
from sdxl_lora.diffusion.flow import FLOW, FlowSampler, FlowSchedule
from sdxl_lora.errors import ConfigError
from sdxl_lora.models.base_files import Tensors, fit, read_into, shown
from sdxl_lora.models.base_kinds import (
    distilled_note,
    has_betas,
    not_by_ddpm,
    predicted_by,
    told_by_file,
    unsupported_schedule,
)
from sdxl_lora.models.base_report import BaseReport, levels_of, look_at
from sdxl_lora.models.base_source import Base, Model, config_errors, empty_model, variants_in, weight_files

for library_logging in (diffusers_logging, transformers_logging):
    library_logging.disable_progress_bar()  # local loads take seconds; downloads keep their bars

ENCODERS = ("text_encoder", "text_encoder_2")
Schedule: TypeAlias = DDPMScheduler | FlowSchedule
Drawing: TypeAlias = EulerDiscreteScheduler | FlowSampler
AS_THE_BASE_SAYS = ObjectiveConfig()
FILE_FLOW_SHIFT = 3.0  # SD3's at 1024 px (arXiv:2403.03206), and the least in cards of flow bases (3 to 8)
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by mixed_precision


def base_of(model: ModelConfig) -> Base:
    return Base(
        model.pretrained_model_name_or_path,
        model.pretrained_vae_model_name_or_path,
        model.pretrained_config_name_or_path,
        model.revision,
        None if model.variant == "auto" else model.variant,
    )


def check_base(base: Base, needs_weights: bool = True) -> BaseReport:
    """Check a base by its headers and configs, and warn of oddities.

    Args:
        needs_weights: False for plans, which need only configs.
    Raises:
        ConfigError: the base is no trainable SDXL base, is a pickle, is not found, or needs a connection.
    """
    report = look_at(base)
    if report.refusal:
        raise ConfigError(report.refusal)
    if report.bare:
        lacking = f"{base.path} holds no .safetensors weights of {', '.join(report.bare)}"
        if others := sorted({variant for part in report.bare for variant in variants_in(base, part)}):
            lacking += f", but those of variant {' and '.join(others)}: give --variant {others[0]}"
        if needs_weights:
            raise ConfigError(f"{lacking}; pickles (.bin, .ckpt) can run code and are not loaded")
        report.notes.append(lacking)
    if note := distilled_note(base.path):
        report.notes.append(note)
    for note in report.notes:
        warnings.warn(note, stacklevel=2)
    return report


def load_part(base: Base, part: str, dtype: torch.dtype) -> Model:
    """Load unet, text_encoder, text_encoder_2 or vae, frozen, with the files' values.

    Raises:
        ConfigError: a weight is missing or has another shape.
    """
    model = empty_model(base, part)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with config_errors(base, part), Tensors(weight_files(base, part)) as tensors:
        found = fit(part, shapes, tensors, levels_of(model))
        if wrong := found.missing + found.misshapen + found.packed:
            raise ConfigError(f"{tensors.paths[0]} does not fit its config, {part}: {shown(wrong)}")
        read_into(model, found, tensors, dtype)
    return model.requires_grad_(False).eval()


def load_vae(base: Base) -> AutoencoderKL:
    """Load the VAE, frozen, in float32: SDXL's overflows in half precision."""
    return load_part(base, "vae", torch.float32)


def load_text_parts(base: Base, dtype: torch.dtype) -> tuple[list[CLIPTokenizer], list[CLIPTextModel]]:
    """Load (tokenizers, text_encoders), two of each, frozen."""
    return load_tokenizers(base), load_text_encoders(base, dtype)


def load_text_encoders(base: Base, dtype: torch.dtype) -> list[CLIPTextModel]:
    """Load both text encoders, frozen."""
    return [load_part(base, part, dtype) for part in ("text_encoder", "text_encoder_2")]


def load_unet(base: Base, dtype: torch.dtype) -> UNet2DConditionModel:
    """Load the UNet, frozen."""
    return load_part(base, "unet", dtype)


def load_tokenizers(base: Base) -> list[CLIPTokenizer]:
    with config_errors(base, "the tokenizers"):
        names = ("tokenizer", "tokenizer_2")
        return [CLIPTokenizer.from_pretrained(base.configs, **base.hub_arguments(name)) for name in names]


def load_schedulers(base: Base, objective: ObjectiveConfig = AS_THE_BASE_SAYS) -> tuple[Schedule, Drawing]:
    """Return the schedule for training, and one of the same noise for sampling.

    SDXL's config names an Euler scheduler, whose add_noise is x + sigma n, but training needs DDPM's mix.
    A v-prediction model in one file says so by a tensor named v_pred (and ztsnr for zero terminal SNR).
    With zero terminal SNR the last timestep is pure noise; sampling then starts there, with trailing timesteps
    (arXiv:2305.08891).

    Raises:
        ConfigError: zero terminal SNR for a model that predicts epsilon, flow_shift for one that predicts no flow, a
            base that was trained by EDM, or a scheduler that does not fit the prediction_type.
    """
    config = scheduler_config(base)
    if unsupported := unsupported_schedule(config):
        raise ConfigError(not_by_ddpm(base, unsupported))
    told, is_zero_snr, _ = what_it_says(base)
    if told in ("v_prediction", FLOW):
        config |= {"prediction_type": told, "rescale_betas_zero_snr": is_zero_snr}
    prediction = objective.prediction_type or predicted_by(config)
    if prediction == FLOW:
        return flow_schedulers(base, config, objective)
    if objective.flow_shift is not None:
        raise ConfigError(
            f"flow_shift is for bases that predict a flow, {base.path} predicts {prediction}: leave it out"
        )
    if not has_betas(config):
        raise ConfigError(
            f"{base.path} predicts a flow according to its scheduler's config, which has no betas to train "
            f"{prediction} with: leave out --prediction_type"
        )
    config["prediction_type"] = prediction
    if objective.zero_terminal_snr:
        config["rescale_betas_zero_snr"] = True
        if prediction == "epsilon":
            raise ConfigError(
                "zero_terminal_snr needs a base that predicts v: pure noise says nothing about an image. "
                "Leave it out, or give --prediction_type v_prediction if that is what the base was trained for."
            )
    if config.get("rescale_betas_zero_snr"):
        config["timestep_spacing"] = "trailing"
    return DDPMScheduler.from_config(config), EulerDiscreteScheduler.from_config(config)


def what_it_says(base: Base) -> tuple[str | None, bool, str]:
    """Return a single file's own account of its prediction, see `told_by_file`; nothing for a folder."""
    if not base.is_file:
        return None, False, ""
    with Tensors(weight_files(base, "unet")) as tensors:
        return told_by_file(tensors, tensors.metadata)


def scheduler_config(base: Base) -> dict:
    """Return the config of the base's scheduler; for a single file, the one beside its other configs."""
    with config_errors(base, "the scheduler's config"):
        return dict(DDPMScheduler.load_config(base.configs, **base.hub_arguments("scheduler")))


def flow_schedulers(base: Base, config: Mapping, objective: ObjectiveConfig) -> tuple[FlowSchedule, FlowSampler]:
    """Return both schedules of a flow, with the requested shift or that of the scheduler's config."""
    shift = objective.flow_shift or config.get("shift") or config.get("flow_shift")
    if objective.flow_shift is None and config.get("use_dynamic_shifting"):
        raise ConfigError(
            f"the scheduler of {base.path} shifts by the size of each image (use_dynamic_shifting), which training "
            "does not: give one shift for all with --flow_shift, 3 is usual"
        )
    shift = FILE_FLOW_SHIFT if shift is None else shift
    steps = config.get("num_train_timesteps", 1000)
    return FlowSchedule(steps, shift), FlowSampler(steps, shift)


def force_zeros_for_empty_prompt(base: Base) -> bool:
    """Return whether the base takes zeros, not the encoded empty text, if no prompt is given."""
    return bool(StableDiffusionXLPipeline.load_config(base.configs).get("force_zeros_for_empty_prompt", True))

"""Kinds of files and folders given as a base, told by tensor names and shapes and by configs."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sdxl_lora.diffusion.flow import FLOW
from sdxl_lora.models.base_source import Base

SDXL = "an SDXL base"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
FILE_KINDS = (  # (what it is, any of these in a name)
    ("a LoRA", ("lora_", ".lora", "hada_w", "lokr_w", "oft_blocks", "oft_diag")),
    ("a ControlNet", ("control_model.", "controlnet_cond_embedding", "input_hint_block")),
    ("a Flux checkpoint", ("double_blocks.", "single_transformer_blocks.")),
    ("a Stable Diffusion 3 checkpoint", ("joint_blocks.",)),
    ("a Stable Diffusion 2.x checkpoint", ("cond_stage_model.model.",)),
    ("a Stable Diffusion 1.x checkpoint", ("cond_stage_model.",)),
    ("another model's transformer", ("transformer_blocks.0.attn.", "blocks.0.self_attn.", "double_layers.")),
    ("a textual inversion", ("emb_params", "string_to_param", "clip_g", "clip_l")),
)
UNETS = ("model.diffusion_model.", "input_blocks.", "down_blocks.")
PREDICTIONS = ("epsilon", "v_prediction")
KEPT_BY = {"v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction"}
FLOWS = (FLOW, "rectified_flow", "rf", "flow_prediction", "velocity")


def kind_of_file(names: Iterable[str]) -> str:
    """Return SDXL, or a description of what a single file is instead."""
    names = list(names)

    def has(part: str) -> bool:
        return any(part in name for name in names)

    first, second = has("conditioner.embedders.0."), has("conditioner.embedders.1.")
    whole_unet = any(name.startswith("model.diffusion_model.input_blocks.") for name in names)
    for found, parts in FILE_KINDS:
        if not (whole_unet and first) and any(map(has, parts)):
            return found
    if has("model.diffusion_model.") and second:
        return SDXL
    if has("conditioner.embedders.0.model.") and not second:
        return "the SDXL refiner"
    if has("model.diffusion_model.") and first:
        return "an SDXL checkpoint without its second text encoder"
    if any(name.startswith(UNETS) for name in names):
        return "a UNet without its text encoders"
    if has("decoder.conv_in.") and has("encoder.conv_in."):
        return "a VAE alone"
    if has("text_model.") or has("transformer.resblocks."):
        return "a text encoder alone"
    return f"something else (its first tensors: {', '.join(names[:3]) or 'none'})"


def kind_of_unet(channels: int) -> str | None:
    """Return the kind of SDXL UNet with this many input channels; None for the base's 4."""
    return {
        4: None,
        8: "an SDXL pix2pix model (its UNet takes 8 channels: latents beside those of the image to edit)",
        9: "an SDXL inpainting model (its UNet takes 9 channels: latents, mask and masked latents)",
    }.get(channels, f"an SDXL model of another kind (its UNet takes {channels} channels)")


def kind_of_folder(folder: Path) -> str:
    """Describe a folder without model_index.json."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    files = sorted(name for name in names if name.lower().endswith(".safetensors"))
    if "adapter_config.json" in names or any("lora" in name.lower() for name in files):
        return "a LoRA's folder"
    if {"diffusion_pytorch_model.safetensors", "config.json"} <= names:
        return "one part of a base: give the folder above it"
    if files:
        return f"a folder of single files: give one of them, such as {folder / files[0]}"
    return "a folder without model_index.json, which every diffusers base has"


def distilled_note(path: str) -> str | None:
    """Return advice on sampling from a base distilled to few steps, as its name tells; None for others."""
    if not re.search(r"turbo|lightning|hyper|lcm|dmd", Path(path).name, re.IGNORECASE):
        return None
    return (
        f"{Path(path).name} is, by its name, distilled to few steps: it is trained like any base, which undoes "
        "some of that; samples need --validation_guidance_scale 1 to 2 and --validation_inference_steps 4 to 8"
    )


def predicted_by(config: Mapping) -> str:
    """Return the prediction of a model by its scheduler's config: "flow", or its prediction_type."""
    prediction = config.get("prediction_type") or "epsilon"
    is_flow = "Flow" in str(config.get("_class_name")) or config.get("use_flow_sigmas") or prediction in FLOWS
    return FLOW if is_flow else prediction


def unsupported_schedule(config: Mapping) -> str | None:
    """Return the unsupported training of a model by its scheduler's config; None for DDPM or a flow.

    Returns:
        "EDM", the unsupported prediction, or the name of a scheduler without betas.
    """
    name, prediction = str(config.get("_class_name", "a scheduler without a name")), config.get("prediction_type")
    if predicted_by(config) == FLOW:
        return None
    if "EDM" in name or config.get("timestep_type") == "continuous" or prediction == "edm":
        return "EDM"
    if prediction not in (None, *PREDICTIONS):
        return f"{prediction!r}"
    return None if has_betas(config) else f"{name}, which has no betas"


def has_betas(config: Mapping) -> bool:
    """Return whether a scheduler's config has DDPM's noise schedule."""
    return config.get("trained_betas") is not None or {"beta_start", "beta_end", "beta_schedule"} <= set(config)


def not_by_ddpm(base: Base, found: str) -> str:
    """Return the sentence that refuses a base trained with another objective."""
    what = f"was trained by {found}" if found == "EDM" else f"predicts {found}"
    if "which has no betas" in found:
        what = f"has {found}"
    return f"{base.path} {what}, which is not supported yet: training needs a base that predicts epsilon, v or a flow"


def told_by_file(names: Iterable[str], metadata: Mapping[str, str]) -> tuple[str | None, bool, str]:
    """Return a single file's own account of its training: (prediction or None, zero terminal SNR, the source of this).

    It reads the names that ComfyUI reads: v_pred and ztsnr (NoobAI), edm_* (Playground 2.5, CosXL). Metadata count only
    for v and flows: trainers write epsilon into many files unasked.
    """
    names = set(names)
    if edm := sorted(name for name in names if name.startswith("edm_")):
        return "EDM", False, f"tensor {edm[0]}"
    if "v_pred" in names:
        return "v_prediction", "ztsnr" in names, "tensor v_pred" + (" and ztsnr" if "ztsnr" in names else "")
    said = str(metadata.get("modelspec.prediction_type", "")).lower()
    if said in FLOWS:
        return FLOW, False, "metadata modelspec.prediction_type"
    if said in KEPT_BY:
        return KEPT_BY[said], "ztsnr" in names, "metadata modelspec.prediction_type"
    return None, "ztsnr" in names, ""

"""Write a pipeline as one .safetensors file in the layout of Stability's SDXL release, as on CivitAI."""

import re

import torch
from safetensors.torch import save_file

from sdxl_lora.lora.formats.keys import to_sgm


def write_original_layout(pipeline, path, extra=()):
    """Write the file; `extra` names empty tensors to add, e.g. v_pred."""
    tensors = {name: torch.zeros(0) for name in extra}
    for name, tensor in pipeline.unet.state_dict().items():
        module, parameter = name.rsplit(".", 1)
        tensors[f"model.diffusion_model.{unet_name(module)}.{parameter}"] = tensor
    levels = len(pipeline.vae.config.block_out_channels)
    for name, tensor in pipeline.vae.state_dict().items():
        tensors[f"first_stage_model.{vae_name(name, levels)}"] = as_1x1_convolution(name, tensor)
    for name, tensor in pipeline.text_encoder.state_dict().items():
        name = name if name.startswith("text_model.") else f"text_model.{name}"
        tensors[f"conditioner.embedders.0.transformer.{name}"] = tensor
    tensors |= {
        f"conditioner.embedders.1.model.{name}": tensor for name, tensor in open_clip(pipeline.text_encoder_2).items()
    }
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def unet_name(module):
    """Return a module's original name. to_sgm knows the layers that a LoRA can have; norms are beside them."""
    module = module.replace("conv_norm_out", "out.0")
    for norm, place in (("norm1", "in_layers.0"), ("norm2", "out_layers.0")):
        if found := re.fullmatch(rf"(.*resnets\.\d+)\.{norm}", module):
            return to_sgm(f"{found[1]}.conv1").replace("in_layers.2", place)
    if found := re.fullmatch(r"(.*attentions\.\d+)\.((?:transformer_blocks\.\d+\.)?norm\d?)", module):
        return to_sgm(f"{found[1]}.proj_in").replace("proj_in", found[2])
    return module if module.startswith("out.") else to_sgm(module)


def vae_name(name, levels):
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}.block.{found[2]}", name
    )
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def as_1x1_convolution(name, tensor):
    return tensor[:, :, None, None] if "attentions" in name and tensor.dim() == 2 else tensor


def open_clip(encoder):
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    tensors = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": torch.zeros(()),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for layer in range(encoder.config.num_hidden_layers):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
            tensors |= {f"{new}.{theirs}.{kind}": state[f"{old}.{ours}.{kind}"] for ours, theirs in names.items()}
    return tensors

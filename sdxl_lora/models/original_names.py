"""Names of a model's tensors in files: diffusers' and transformers' current names, older ones, or the original ones.

"Original" is the layout of Stability's release, used on CivitAI and in ComfyUI. Works on strings only.
"""

import re
from dataclasses import dataclass

from sdxl_lora.lora.formats.keys import to_sgm

PREFIXES = {  # of a part's names in a file of the whole base; none in a file of the part alone
    "unet": ("model.diffusion_model.", "unet."),
    "text_encoder": ("conditioner.embedders.0.transformer.", "text_encoder."),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.1.transformer.", "text_encoder_2."),
    "vae": ("first_stage_model.", "vae."),
}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn", "group_norm": "group_norm"}
LDM_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class Place:
    """Location of a tensor: part `number` of `count` equal blocks of rows in the file's tensor `name`."""

    name: str
    number: int = 0
    count: int = 1
    is_transposed: bool = False


def places(part: str, name: str, levels: int = 0) -> list[Place]:
    """Return the possible places of a part's tensor `name`, without the part's prefix.

    Args:
        part: unet, vae, text_encoder or text_encoder_2.
        name: in diffusers or transformers.
        levels: for a VAE, the number of its blocks' sizes.
    """
    if part == "unet":
        original = sgm_tensor(name)
        return [Place(name), *([Place(original)] if original else [])]
    if part == "vae":
        return [Place(found) for found in dict.fromkeys((name, old_vae_tensor(name), ldm_tensor(name, levels)))]
    name = name.removeprefix("text_model.")
    found = [Place(f"text_model.{name}"), Place(name)]
    return found + open_clip_places(name) if part == "text_encoder_2" else found


def sgm_tensor(name: str) -> str | None:
    """Return a tensor's name in the original UNet; None if it has none."""
    module, _, kind = name.rpartition(".")
    try:
        if module == "conv_norm_out":
            return f"out.0.{kind}"
        if found := re.fullmatch(r"(.*resnets\.\d+)\.(norm[12])", module):
            place = "in_layers.0" if found[2] == "norm1" else "out_layers.0"
            return f"{to_sgm(f'{found[1]}.conv1').removesuffix('in_layers.2')}{place}.{kind}"
        if found := re.fullmatch(r"(.*attentions\.\d+)\.((?:transformer_blocks\.\d+\.)?norm\d?)", module):
            return f"{to_sgm(f'{found[1]}.proj_in').removesuffix('proj_in')}{found[2]}.{kind}"
        return f"{to_sgm(module)}.{kind}"
    except ValueError:
        return None


def old_vae_tensor(name: str) -> str:
    """Return the name of a VAE attention tensor in diffusers before 2023."""
    return attention_by(name, "mid_block.attentions.0", OLD_ATTENTION)


def ldm_tensor(name: str, levels: int) -> str:
    """Return a tensor's name in the original VAE, whose decoder numbers its levels in reverse."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    if match := re.search(r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)", name):
        part = {"resnets": "block", "upsamplers.0": "upsample"}[match[2]]
        name = name.replace(match[0], f"up.{levels - 1 - int(match[1])}.{part}")
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = attention_by(name, "mid_block.attentions.0", LDM_ATTENTION)
        return name.replace("mid_block.attentions.0", "mid.attn_1")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def attention_by(name: str, block: str, names: dict[str, str]) -> str:
    before, found, rest = name.partition(f"{block}.")
    module, _, kind = rest.rpartition(".")
    return f"{before}{block}.{names[module]}.{kind}" if found and module in names else name


def open_clip_places(name: str) -> list[Place]:
    """Return places by OpenCLIP's names; OpenCLIP joins q, k and v, and projects by a transposed matrix."""
    if name == "text_projection.weight":
        return [Place("text_projection", is_transposed=True)]
    if name in OPEN_CLIP:
        return [Place(OPEN_CLIP[name])]
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if not found:
        return []
    layer = f"transformer.resblocks.{found[1]}"
    if qkv := re.fullmatch(r"self_attn\.([qkv])_proj", found[2]):
        return [Place(f"{layer}.attn.in_proj_{found[3]}", "qkv".index(qkv[1]), 3)]
    return [Place(f"{layer}.{OPEN_CLIP_LAYER[found[2]]}.{found[3]}")] if found[2] in OPEN_CLIP_LAYER else []

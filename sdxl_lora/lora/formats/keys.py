"""Module names of LoRA layers: diffusers' names, the original (sgm) UNet's, and kohya's flattened keys.

Works on strings only: no tensors, no files. reader.py and writer.py handle the keys around these names.
A canonical name is diffusers' module name, prefixed with `text_model.` for both text encoders.
"""

import re

# prefixes of dotted names: diffusers' and PEFT's, the original layout's, ComfyUI's and OMI's
DOTTED_PREFIXES = {
    "unet": r"unet\.|(model\.)?diffusion_model\.",
    "text_encoder": r"text_encoder(_1)?\.|(text_encoders\.)?clip_l\.(transformer\.)?"
    r"|conditioner\.embedders\.0\.transformer\.",
    "text_encoder_2": r"text_encoder_2\.|(text_encoders\.)?clip_g\.(transformer\.)?",
}
KOHYA_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
COMPONENTS = tuple(KOHYA_PREFIX)

RESNET = {  # parts of a residual block: diffusers -> sgm
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
STEM = {  # modules outside the blocks
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET_BACK = {sgm: name for name, sgm in RESNET.items()}
STEM_BACK = {sgm: name for name, sgm in STEM.items()}

# Names that contain an underscore of their own; every other underscore of a kohya key stands for a dot.
COMPOUND = (
    "input_blocks|output_blocks|middle_block|down_blocks|up_blocks|mid_block|transformer_blocks|in_layers|out_layers|"
    "emb_layers|skip_connection|time_embedding|time_embed|add_embedding|label_emb|conv_in|conv_out|conv_shortcut|"
    "time_emb_proj|proj_in|proj_out|to_q|to_k|to_v|to_out|linear_1|linear_2|text_model|text_projection|self_attn|"
    "q_proj|k_proj|v_proj|out_proj"
)
TOKEN = re.compile(rf"({COMPOUND}|[a-z]*\d*)(?:_|$)")
TEXT_NAME = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])|text_projection"
)
TRANSFORMER = r"(proj_in|proj_out|transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"
PARTS = rf"(resnets\.{{n}}\.({'|'.join(RESNET)})|attentions\.{{n}}\.{TRANSFORMER})"
UNET_NAME = re.compile(
    rf"down_blocks\.[012]\.({PARTS.replace('{n}', '[01]')}|downsamplers\.0\.conv)"
    rf"|up_blocks\.[012]\.({PARTS.replace('{n}', '[012]')}|upsamplers\.0\.conv)"
    rf"|mid_block\.{PARTS.replace('{n}', '[01]')}|{'|'.join(map(re.escape, STEM))}"
)

TARGETS = ("attention", "attention+ff", "all-linear", "all-linear+conv")
# Clients disagree about these, and some drop them silently.
NEVER = re.compile(r"(^|\.)(conv_in|conv_out|time_embedding|add_embedding|text_projection)(\.|$)")
ATTENTION = re.compile(r"\.(to_q|to_k|to_v|to_out\.0|q_proj|k_proj|v_proj|out_proj)$")
FEED_FORWARD = re.compile(r"\.(ff\.net\.(0\.proj|2)|mlp\.fc[12])$")


def is_target(name: str, targets: str, linear: bool) -> bool:
    """Return whether one of TARGETS selects this layer (linear or a convolution)."""
    if NEVER.search(name):
        return False
    if targets == "all-linear+conv" or (targets == "all-linear" and linear):
        return True
    return bool(ATTENTION.search(name) or (targets == "attention+ff" and FEED_FORWARD.search(name)))


def to_sgm(name: str) -> str:
    """Return the original UNet's name of a diffusers module: three numbered blocks per level, with numbered parts.

    Raises:
        ValueError: SDXL's UNet has no such module.
    """
    if name in STEM:
        return STEM[name]
    found = re.fullmatch(r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(\w+?)s\.(\d+)\.(.+)", name)
    if not found or not UNET_NAME.fullmatch(name):
        raise ValueError(f"{name} is not a module of SDXL's UNet.")
    side, part, i, rest = found[1], found[2], int(found[3]), found[4]
    if part == "resnet":
        rest = RESNET[rest]
    if side == "mid_block":
        return f"middle_block.{2 * i if part == 'resnet' else 1}.{rest}"
    side, level = side.split(".")
    if part == "downsampler":
        return f"input_blocks.{3 * int(level) + 3}.0.op"
    if part == "upsampler":
        return f"output_blocks.{3 * int(level) + 2}.2.conv"
    first = "input_blocks" if side == "down_blocks" else "output_blocks"
    number = 3 * int(level) + i + (side == "down_blocks")  # input block 0 is conv_in
    return f"{first}.{number}.{0 if part == 'resnet' else 1}.{rest}"


def from_sgm(name: str) -> str:
    """Return the diffusers name of an original UNet module; the inverse of `to_sgm`.

    Raises:
        ValueError: not a module of the original SDXL UNet.
    """
    if name in STEM_BACK:
        return STEM_BACK[name]
    if found := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        i, rest = int(found[1]), found[2]
        back = f"mid_block.attentions.0.{rest}" if i == 1 else f"mid_block.resnets.{i // 2}.{RESNET_BACK.get(rest)}"
    elif found := re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", name):
        side = "down_blocks" if found[1] == "input" else "up_blocks"
        level, i = divmod(int(found[2]) - (side == "down_blocks"), 3)
        part, rest = found[3], found[4]
        if rest in ("op", "conv"):
            part = "downsamplers" if rest == "op" else "upsamplers"
            back = f"{side}.{level}.{part}.0.conv"
        elif part == "0":
            back = f"{side}.{level}.resnets.{i}.{RESNET_BACK.get(rest)}"
        else:
            back = f"{side}.{level}.attentions.{i}.{rest}"
    else:
        back = ""
    if not UNET_NAME.fullmatch(back) or to_sgm(back) != name:
        raise ValueError(f"{name} is not a module of the original SDXL UNet.")
    return back


def canonical(component: str, name: str) -> str:
    """Return a module's canonical name from diffusers' or sgm's name, with or without `text_model.`.

    Raises:
        ValueError: the component has no such module.
    """
    if component == "unet":
        if re.match(r"(input_blocks|middle_block|output_blocks|out|time_embed|label_emb)\.", name):
            return from_sgm(name)
        if UNET_NAME.fullmatch(name):
            return name
    else:
        # transformers >= 5.6 names encoder one without the prefix; four clients need it.
        full = name if name.startswith("text_") else f"text_model.{name}"
        if TEXT_NAME.fullmatch(full):
            return full
    raise ValueError(f"{name} is not a module of SDXL's {component}.")


def kohya_name(component: str, name: str) -> str:
    """Return the key stem in kohya's container for a canonical name: sgm names for the UNet, underscores for dots."""
    dotted = to_sgm(name) if component == "unet" else name
    return KOHYA_PREFIX[component] + dotted.replace(".", "_")


def parse_kohya_name(flat: str) -> tuple[str, str]:
    """Return (component, canonical name) of a kohya key stem, which may hold sgm or diffusers names.

    Raises:
        ValueError: not a module of SDXL.
    """
    for component, prefix in KOHYA_PREFIX.items():
        if flat.startswith(prefix):
            words = [word for word in TOKEN.findall(flat[len(prefix) :]) if word]
            return component, canonical(component, ".".join(words))
    if flat.startswith("lycoris_"):  # standalone LyCORIS and SimpleTuner: diffusers names of the UNet
        return parse_kohya_name(KOHYA_PREFIX["unet"] + flat.removeprefix("lycoris_"))
    raise ValueError(f"{flat} is not a LoRA module of SDXL (expected lora_unet_, lora_te1_ or lora_te2_ in front).")


def parse_dotted_name(dotted: str) -> tuple[str | None, str]:
    """Return (component, canonical name) of a dotted module name; (None, the same name) if it has no prefix.

    Raises:
        ValueError: not a module of SDXL.
    """
    dotted = dotted.removeprefix("base_model.model.")
    for component, prefix in DOTTED_PREFIXES.items():
        if found := re.match(prefix, dotted):
            return component, canonical(component, dotted[found.end() :].removeprefix("base_model.model."))
    return None, dotted


def kernel_size(name: str) -> int:
    """Return 0 for a linear layer, 3 or 1 for a convolution, by its canonical name (SDXL's projections are linear)."""
    if name.endswith("conv_shortcut"):
        return 1
    return 3 if re.search(r"(conv1|conv2|samplers\.0\.conv|^conv_in|^conv_out)$", name) else 0

"""Files that are not LoRAs for SDXL, and tensors in LoRA files beside layers. Rules on keys; see reader.py."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from torch import Tensor

# pattern of a key -> kind of file
REFUSED = {
    r".+\.(a1|a2|b1|b2|bm1|bm2)(\.weight)?": "a GLoRA",
    r".+\.(oft_blocks|oft_diag|oft_[rR]|boft_[RS]|boft_[rs]|rescale)(\..+)?": "an OFT or BOFT",
    r".+\.(on_input|ia3_l)(\..+)?": "an (IA)^3",
    r".+\.(vera_lambda_[bd]|vera_[AB]|fourierft_spectrum|hra_u|vblora_\w+|shira_\w+)(\..+)?": "of a PEFT method",
    r".+\.set_weight": "a file of whole weights, not of changes,",
    r"lora_controlnet|.+\.reshape_weight": "a Control-LoRA, which guides by an image,",
    r"(.+\.)?(scaled_fp8|scale_weight|weight_scale|scale_input|input_scale|comfy_quant)(\..+)?": "in scaled float8",
}
REMEDY = {"in scaled float8": "save it again in fp16 or bf16 with the tool that made it"}
TRANSFORMER = "a transformer in place of the UNet, such as Flux"
OTHER_MODELS = {  # by part of a key
    r"double_blocks|single_blocks|single_transformer_blocks": "Flux or a model of its kind",
    r"joint_blocks|add_[qkv]_proj|lora_te3_|text_encoder_3|t5xxl": "Stable Diffusion 3",
    r"^lora_te_|down_blocks[._]3|up_blocks[._]3[._]|down_blocks[._]0[._]attentions"
    r"|input_blocks[._](1|2)[._]1[._]|(in|out)put_blocks[._](9|1\d)[._]": "SD 1.5, SD 2 or SDXL's refiner",
    r"^lora_prior_": "Stable Cascade",
    r"^(base_model\.model\.)?(transformer\.|lora_transformer_|diffusion_model\.(layers|blocks)\.)": TRANSFORMER,
}
EMBEDDING = "embedding bundled in it"
LEFT_OUT = {
    EMBEDDING: r"bundle_emb\.(?P<name>.+?)\.(string_to_\w+(\..+)?|\w+)",
    "trained norms": r".+\.[wb]_norm",
    "trained biases": r".+\.(diff_b|bias_(values|indices|size)|lora_(A|B|up|down)(\.[^.]+)?\.bias)",
    "layers trained as a whole": r".+\.(modules_to_save\..+|base_layer\.(weight|bias))",
    "trained token embeddings": r".+(embeddings?[._](token|position)_embedding\..+|\.lora_embedding_[AB](\..+)?)",
}
COSTS = "images differ from those of a client that reads them"


def what_else(keys: Iterable[str]) -> str:
    """Return the kind of an unsupported file, with advice; "" if it may be a LoRA."""
    keys = list(keys)
    for pattern, kind in REFUSED.items():
        if found := next((key for key in keys if re.fullmatch(pattern, key)), None):
            advice = REMEDY.get(kind, "merge it into a base with the tool that made it, or give a LoRA")
            return f"is {kind} ({found}), which is not supported: {advice}."
    if keys and set(keys) <= {"clip_l", "clip_g", "emb_params"}:
        return f"is an embedding ({keys[0]}), not a LoRA: clients read it from their embeddings folder."
    return ""


def other_model(keys: Iterable[str]) -> str:
    """Return the model other than SDXL that the names belong to; "" if they do not tell."""
    text = "\n".join(keys)
    return next((model for pattern, model in OTHER_MODELS.items() if re.search(pattern, text, re.MULTILINE)), "")


def left_out_as(key: str, shape: tuple[int, ...]) -> str:
    """Return the kind of a known tensor that is not read; "" for a LoRA's."""
    if key.endswith(".diff") and len(shape) == 1:
        return "trained norms"
    return next((kind for kind, pattern in LEFT_OUT.items() if re.fullmatch(pattern, key)), "")


def notes_of(kinds: dict[str, str], read: Callable[[str], Tensor]) -> tuple[str, ...]:
    """Return a sentence for each kind of tensor left out, with its cost.

    Args:
        kinds: by key, from `left_out_as`.
        read: reads a tensor, to see whether it changes anything.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    for key, kind in kinds.items():
        by_kind[kind].append(key)
    notes = []
    for kind, keys in by_kind.items():
        if kind == EMBEDDING:
            matches = [re.fullmatch(LEFT_OUT[kind], key) for key in keys]
            names = dict.fromkeys(match["name"] for match in matches if match)
            spelled = f"{len(names)} {kind}" if len(names) == 1 else f"{len(names)} {kind.replace('ing b', 'ings b')}"
            notes.append(f"left out: {spelled} ({', '.join(names)}); prompts with its word need it as a separate file")
            continue
        changes = any(read(key).float().any() for key in keys)
        cost = COSTS if changes else "they are zero, so nothing is lost"
        few = f"{len(keys)} tensors, such as {keys[0]}" if len(keys) > 1 else keys[0]
        notes.append(f"left out: {kind} ({few}); {cost}")
    return tuple(notes)

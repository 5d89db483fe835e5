"""Checks of a captioner's files before use: layout, completeness of the weights, and a digest of the content."""

import hashlib
import re
from functools import partial
from pathlib import Path

from sdxl_lora.errors import ConfigError
from sdxl_lora.io.file_system import weights_sha256
from sdxl_lora.io.memo import FileMemo, file_stamp

# weights, config, and the files of the image processor and the tokenizer
CONTENT = re.compile(
    r"((processor_|preprocessor_|image_processor_|generation_|tokenizer_)?config|tokenizer|vocab|added_tokens"
    r"|special_tokens_map|chat_template)\.json|(vocab|merges)\.txt|.+\.(jinja|model)"
    r"|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
# buffers that older versions of transformers saved and this one computes
BUFFERS = re.compile(
    r"(.*\.)?(position_ids|inv_freq|masked_bias|num_batches_tracked|relative_position_index|attn\.bias)"
)


def check_layout(model: str, config: dict) -> None:
    """Check that transformers can read the model without code from its repository.

    Args:
        config: the content of its config.json.
    Raises:
        ConfigError: Florence-2 in Microsoft's layout, or a model that needs code of its repository.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    text, vision = (config.get(part) or {} for part in ("text_config", "vision_config"))
    is_florence2 = config.get("model_type") == "florence2" or "Florence2" in str(config.get("architectures"))
    is_old = "dim_embed" in vision or vision.get("model_type") == "davit" or "florence2" in text.get("model_type", "")
    if is_florence2 and (is_old or config.get("model_type") != "florence2"):
        raise ConfigError(old_florence2(model, text.get("d_model")))
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise ConfigError(
            f"caption_model {model} needs code from its own repository, which is never run here: load one that "
            "transformers supports itself, such as florence-community/Florence-2-base"
        )


def old_florence2(model: str, width: int | None) -> str:
    """Return the message that names a replacement, from the name and the text model's width (768 base, 1024 large)."""
    name = Path(model).name.lower()
    size = "large" if width == 1024 or (width is None and "large" in name) else "base"
    instead = f"florence-community/Florence-2-{size}{'-ft' if name.endswith('-ft') else ''}"
    return (
        f"caption_model {model} is Florence-2 in the layout that Microsoft published, which needs code from its "
        f"repository: load {instead}, or a fine-tune in its layout (vision_config with embed_dim, not dim_embed)"
    )


def check_weights(model: str, model_type: str, found: dict) -> None:
    """Check that the files hold exactly the weights of the model.

    Args:
        found: transformers' loading info: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
    Raises:
        ConfigError: a weight would be random, or a weight of the file goes unused.
    """
    missing, others = sorted(found["missing_keys"]), sorted(key for key, *_ in found["mismatched_keys"])
    unused = sorted(key for key in found["unexpected_keys"] if not BUFFERS.fullmatch(key))
    if model_type == "florence2" and missing and any(key.startswith("language_model.model.") for key in unused):
        raise ConfigError(old_florence2(model, None))
    kinds = {"missing": missing, "with another shape": others, "not in the model": unused}
    if said := [f"{what}: {len(keys)}, such as {keys[0]}" for what, keys in kinds.items() if keys]:
        raise ConfigError(
            f"caption_model {model} does not hold the weights that its config.json asks for ("
            f"{'; '.join(said)}): download it again, or save it with save_pretrained (an adapter merged first)"
        )


def no_safetensors(error: OSError) -> bool:
    """Return whether loading failed because there are no weights as .safetensors."""
    return ("safetensors" in str(error) and "no file named" in str(error)) or "not appear to have" in str(error)


def content_of(model: str, memo: FileMemo) -> str:
    """Return a digest of the files that determine a captioner's words; equal files have equal digests in any folder.

    Args:
        memo: keeps the digests of unchanged files.
    """
    from transformers.utils import cached_file

    folder = Path(cached_file(model, "config.json")).parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if CONTENT.fullmatch(path.name)):
        sha256 = memo.get_or_compute(file_stamp(path), partial(weights_sha256, path))
        digest.update(f"{path.name}\0{sha256}\0".encode())
    memo.save()
    return digest.hexdigest()

"""Settings of the base model."""

from dataclasses import dataclass
from typing import Annotated

from sdxl_lora.config.fields import BY_CONTENT, PATH


@dataclass(frozen=True)
class ModelConfig:
    """Base model."""

    pretrained_model_name_or_path: Annotated[str, PATH, BY_CONTENT] = "stabilityai/stable-diffusion-xl-base-1.0"
    """Base model: a diffusers folder, a Hub id, or one .safetensors file in the original layout."""
    pretrained_vae_model_name_or_path: Annotated[str | None, PATH, BY_CONTENT] = None
    """VAE to use instead of the base's own: a diffusers folder, a Hub id, or one .safetensors file in either layout."""
    pretrained_config_name_or_path: Annotated[str | None, PATH, BY_CONTENT] = None
    """For a base in one .safetensors file: diffusers folder or Hub id that has its configs and tokenizers. Default:
    stabilityai/stable-diffusion-xl-base-1.0 on the Hub."""
    revision: Annotated[str | None, BY_CONTENT] = None
    """Git revision of a base on the Hub."""
    variant: Annotated[str | None, BY_CONTENT] = "auto"
    """Weights variant of a diffusers base, e.g. "fp16"; None for full precision if there is a choice. auto: when
    resuming, the same as before; otherwise fp16, which is half the size, if the base has it and is not kept in
    float32."""

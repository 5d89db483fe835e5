"""Similarity of images to others by any vision model of transformers: CLIP-I and DINO scores.

It is the mean cosine of the embeddings of all pairs, as in DreamBooth (arXiv:2208.12242, section 4.2); 1 is identical.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.sources import check_source
from sdxl_lora.errors import ConfigError

BATCH = 16  # images at once


def check_similarity_model(model: str, setting: str = "similarity_model") -> None:
    """Raise ConfigError unless `model` is a model's folder or a Hub id."""
    check_source(model, setting, "folder")
    folder = Path(model)
    if folder.is_file():
        raise cannot_be_used(model, "it is a file", setting)
    if folder.is_dir():
        needed = (("config.json",), ("preprocessor_config.json", "processor_config.json"))
        lacking = [names[0] for names in needed if not any((folder / name).is_file() for name in names)]
        if lacking:
            raise cannot_be_used(model, f"it is a folder without {' and '.join(lacking)}", setting)


def cannot_be_used(model: str, why: str, setting: str = "similarity_model") -> ConfigError:
    """Return an error that explains which models can be used."""
    return ConfigError(
        f"{setting} {model} cannot be used: {why} (it must be a vision model of transformers with safetensors "
        "and an image processor, e.g. facebook/dinov2-base)"
    )


class Similarity:
    """Measure of similarity to the `references` set by `refer_to`.

    The model waits on the CPU in float32, and moves to a device for use.

    Args:
        model: a folder or a Hub id. Only safetensors are read, and no code of the repository runs.
        setting: the setting that names it.
    Raises:
        ConfigError: it cannot be loaded, or takes no images.
    """

    def __init__(self, model: str, setting: str = "similarity_model"):
        check_similarity_model(model, setting)
        try:
            self.processor = AutoImageProcessor.from_pretrained(model, backend="pil", trust_remote_code=False)
            self.model = AutoModel.from_pretrained(
                model, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
            self.model.eval().requires_grad_(False)
            self.embed([Image.new("RGB", (64, 64))], torch.device("cpu"))
        except Exception as error:  # transformers raises many kinds
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". If you were trying")[0]
            raise cannot_be_used(model, said, setting) from error
        self.references: torch.Tensor | None = None

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image], device: torch.device) -> torch.Tensor:
        """Return embeddings (N, D) of length 1."""
        self.model.to(device)
        parts = [self._features(images[first : first + BATCH], device).cpu() for first in range(0, len(images), BATCH)]
        self.model.to("cpu")
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    def _features(self, images: Sequence[Image.Image], device: torch.device) -> torch.Tensor:
        images = [image.convert("RGB") for image in images]
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"].to(device)
        has_text_too = hasattr(self.model, "get_image_features")
        output = self.model.get_image_features(pixel_values=pixels) if has_text_too else self.model(pixel_values=pixels)
        return pooled(output)

    def refer_to(self, images: Sequence[Image.Image], device: torch.device) -> None:
        self.references = self.embed(images, device)

    def of(self, images: Sequence[Image.Image], device: torch.device) -> float:
        """Return the mean similarity over all pairs of an image and a reference."""
        assert self.references is not None, "refer_to comes first"
        return (self.embed(images, device) @ self.references.T).mean().item()

    def of_samples(
        self, prompts: Sequence[SamplePrompt], images: Sequence[Sequence[Image.Image]], device: torch.device
    ) -> dict[str, float]:
        """Return the similarity of all samples with the trigger word, and separately of those without it."""
        groups: dict[str, list[Image.Image]] = {"similarity": [], "similarity_without_trigger": []}
        for prompt, of_prompt in zip(prompts, images, strict=True):
            groups["similarity_without_trigger" if prompt.is_without_trigger else "similarity"].extend(of_prompt)
        return {name: self.of(group, device) for name, group in groups.items() if group}


def pooled(output) -> torch.Tensor:
    """Return the pooled output (N, D) of a transformers model, one row per input."""
    whole = getattr(output, "pooler_output", None)
    return (output.last_hidden_state.mean(1) if whole is None else whole).flatten(1)

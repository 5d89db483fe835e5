"""Numbers from images: matches with prompts by CLIP, and thumbnails. Features come from sampling/similarity.py."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from sdxl_lora.errors import ConfigError
from sdxl_lora.sampling.similarity import Similarity, pooled

THUMBNAIL = 16  # pixels of a side: composition and colours, no detail


class PromptMatcher:
    """Match of images with texts by a CLIP of transformers: the CLIP score (arXiv:2104.08718), not scaled.

    Args:
        model: a folder or a Hub id.
    Raises:
        ConfigError: it cannot be loaded, or reads no texts beside images.
    """

    def __init__(self, model: str):
        self.images = Similarity(model, "clip_model")
        if not hasattr(self.images.model, "get_text_features"):
            raise ConfigError(
                f"clip_model {model} does not read texts: it must be a CLIP of transformers with both halves, "
                "e.g. openai/clip-vit-large-patch14"
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds
            raise ConfigError(f"clip_model {model} has no tokenizer that can be used: {error}") from error

    @torch.no_grad()
    def match(self, images: Sequence[Image.Image], texts: Sequence[str], device: torch.device) -> Tensor:
        """Return cosines (images, texts). Texts longer than the model's context are cut."""
        drawn = self.images.embed(images, device)
        longest = getattr(self.images.model.config, "text_config", self.images.model.config).max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt", verbose=False
        )
        written = pooled(self.images.model.get_text_features(**tokens))
        return drawn @ normalize(written, dim=1).T


def thumbnails(images: Sequence[Image.Image]) -> Tensor:
    """Return (N, 3 * THUMBNAIL²) centred rows of length 1, so that the product of two is their correlation.

    An image of a single colour is all zeros, and correlates with nothing.
    """
    size = (THUMBNAIL, THUMBNAIL)
    small = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32) for image in images]
    flat = torch.from_numpy(np.stack(small)).flatten(1) / 255
    return normalize(flat - flat.mean(1, keepdim=True), dim=1, eps=1e-4)

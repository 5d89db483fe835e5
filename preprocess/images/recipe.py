"""The settings that determine a crop's pixels, and their digest in caches."""

import hashlib
import json
from dataclasses import dataclass

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.sections.preprocess import ImageConfig, SizeConfig

VERSION = 1  # raise it when a recipe gives other pixels or Prepared other fields: all crops are made again


@dataclass(frozen=True)
class Recipe:
    """The settings that determine a crop's pixels, beside the source file."""

    sizes: SizeConfig
    images: ImageConfig

    def digest(self) -> str:
        """Return the recipe's digest for caches. The names in it stay, even when settings are renamed."""
        sizes, images = self.sizes, self.images
        sizing = {
            "resolution": sizes.resolution,
            "buckets": sizes.buckets == "on",
            "bucket_step": sizes.bucket_step,
            "max_aspect": sizes.max_aspect,
            "min_side": sizes.min_side,
            "no_upscale": sizes.no_upscale,
            "enlarge_small": sizes.enlarge_small,
        }
        facts = {
            "sizing": sizing,
            "crop": images.crop,
            "crops_per_picture": images.crops_per_picture,
            "seed": images.seed,
            "background": images.background,
            "image_format": images.image_format,
            "max_megapixels": images.max_megapixels,
            "masks": images.masks,
        }
        text = json.dumps([VERSION, facts], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def recipe_of(config: PreprocessConfig) -> Recipe:
    return Recipe(config.sizes, config.images)

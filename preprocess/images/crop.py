"""Crop an image to its bucket, with original_size and crop_top_left. Knows no files and no captions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdxl_lora.config.sections.preprocess import SizeConfig
from sdxl_lora.data.buckets import (
    Size,
    bucket_sizes,
    kept_share,
    largest_inner_bucket,
    nearest_bucket,
    needs_enlarging,
    smaller_buckets,
)
from sdxl_lora.images.decode import cover_and_crop


def sizes_of(config: SizeConfig) -> list[Size]:
    """Return every training size of images that are large enough."""
    if config.buckets == "off":
        return [(config.resolution, config.resolution)]
    return bucket_sizes(config.resolution, config.bucket_step, config.max_aspect)


def note_on_square(config: SizeConfig) -> str | None:
    """Return a note if square images get another shape because no bucket has the resolution's sides; else None."""
    width, height = nearest_bucket((config.resolution, config.resolution), sizes_of(config))
    if width == height == config.resolution:
        return None
    return (
        f"resolution {config.resolution} is not a multiple of bucket_step {config.bucket_step}: square images get "
        f"{width}x{height}; --resolution {config.resolution // config.bucket_step * config.bucket_step} gives squares"
    )


def bucket_of(config: SizeConfig, size: Size) -> Size:
    """Return the training size of an image.

    Raises:
        ValueError: the image would have to be enlarged, and no flag allows that or a smaller bucket.
    """
    bucket = nearest_bucket(size, sizes_of(config))
    if not needs_enlarging(size, bucket) or config.enlarge_small:
        return bucket
    if config.no_upscale:
        smaller = smaller_buckets(config.resolution, config.bucket_step, config.max_aspect, config.min_side)
        inner = largest_inner_bucket(size, smaller)
        if inner:
            return inner
        raise ValueError(
            f"{size[0]}x{size[1]} px, smaller than the smallest bucket (sides from {config.min_side} px): "
            "pass a smaller --min_bucket_side, or --enlarge_small"
        )
    raise ValueError(
        f"{size[0]}x{size[1]} px, smaller than its {bucket[0]}x{bucket[1]} target: "
        "pass --enlarge_small to enlarge it"
        + (", or --no_upscale for smaller buckets" if config.buckets == "on" else "")
    )


@dataclasses.dataclass(frozen=True)
class Crop:
    """The part of an image that the trainer sees, with its SDXL size conditioning."""

    image: Image.Image
    mask: Image.Image | None
    original_size: tuple[int, int]  # height, width before any resize
    crop_top_left: tuple[int, int]  # y, x in pixels of the resized image
    cut_off: float  # share of the image's area that is not in the crop


def crop_image(
    image: Image.Image, bucket: Size, positions: Sequence[tuple[float, float]], mask: Image.Image | None = None
) -> list[Crop]:
    """Return one crop of the bucket's size for each position (x, y from 0 to 1); the mask is cut at the same place.

    Args:
        image: RGB, upright.
        mask: mode L of the image's size, white where the loss counts.
    """
    crops = []
    for position in positions:
        pixels, original_size, top_left = cover_and_crop(image, bucket, position)
        cut_mask = cover_and_crop(mask, bucket, position)[0] if mask else None
        crops.append(Crop(pixels, cut_mask, original_size, top_left, 1 - kept_share(image.size, bucket)))
    return crops


def random_positions(seed: int, name: str, count: int) -> list[tuple[float, float]]:
    """Return random crop positions (x, y) that depend on the seed and the image's content alone."""
    generator = np.random.default_rng([seed, int(name[:16], 16)])
    return [(float(x), float(y)) for x, y in generator.random((count, 2))]

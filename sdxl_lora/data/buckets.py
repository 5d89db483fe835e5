"""Aspect-ratio buckets: the training size of each image.

Sizes are (width, height) in pixels, multiples of `step`. Opens no image; see preprocess/images/crop.py.
"""

import math
from collections.abc import Sequence

Size = tuple[int, int]


def bucket_sizes(resolution: int, step: int = 64, max_aspect: float = 2.0) -> list[Size]:
    """Return all sizes that fill the area of a `resolution` square: multiples of `step`, no side can grow by one.

    Args:
        resolution: side in pixels of the square whose area no bucket exceeds.
        max_aspect: longer side / shorter side, at most.
    Returns:
        sizes from the tallest to the widest; with every (w, h) also (h, w).
    Raises:
        ValueError: not even (step, step) fits.
    """
    if resolution < step:
        raise ValueError(f"resolution {resolution} is below bucket_step {step}: pass --bucket_step {resolution}")
    area = resolution * resolution
    sizes = set()
    for side in range(step, area // step + 1, step):
        other = area // side // step * step
        if max(side, other) <= max_aspect * min(side, other):
            sizes |= {(side, other), (other, side)}
    return sorted(sizes, key=lambda size: size[0] / size[1])


def smaller_buckets(resolution: int, step: int = 64, max_aspect: float = 2.0, min_side: int = 0) -> list[Size]:
    """Return bucket_sizes and every smaller size with sides of at least `min_side`, for small images."""
    longest = resolution * resolution // step
    sides = range(max(step, math.ceil(min_side / step) * step), longest + 1, step)
    return [
        (w, h) for w in sides for h in sides if w * h <= resolution * resolution and max(w, h) <= max_aspect * min(w, h)
    ]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket of nearest aspect ratio, which crops off least; the largest of equals."""
    return min(buckets, key=lambda bucket: (round(-math.log(kept_share(size, bucket)), 9), -bucket[0] * bucket[1]))


def largest_inner_bucket(size: Size, buckets: Sequence[Size]) -> Size | None:
    """Return the bucket that keeps most pixels of `size` without enlarging it; None if all are larger."""
    inner = [bucket for bucket in buckets if not needs_enlarging(size, bucket)]
    return max(inner, key=lambda bucket: bucket[0] * bucket[1] * kept_share(size, bucket), default=None)


def kept_share(size: Size, bucket: Size) -> float:
    """Return the share of the image's area, above 0 to 1, that is left when it covers the bucket and is cropped."""
    aspect, target = size[0] / size[1], bucket[0] / bucket[1]
    return min(aspect, target) / max(aspect, target)


def needs_enlarging(size: Size, bucket: Size) -> bool:
    return size[0] < bucket[0] or size[1] < bucket[1]

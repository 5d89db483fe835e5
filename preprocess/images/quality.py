"""Quality measures of an image, and the warnings that follow from them. Pixels in, plain values out."""

from collections.abc import Sequence

import imagehash
import numpy as np
from PIL import Image

MEASURED_SIDE = 512  # images are measured at one size, so that thresholds mean the same for each
# 17 photographs in scikit-image have a sharpness of 24 to 5295 and a contrast of 51 to 235. Blurred by a Gaussian of
# 2 px at 512 px, 15 of them fall below 12; mixed with 85 % of grey, all fall below 40.
LEAST_SHARPNESS = 12.0
LEAST_CONTRAST = 40.0
MOST_CUT_OFF = 0.35
NEAR_BITS = 10  # of 64: a resized JPEG differed by up to 2, one cropped by 3 % at each edge mostly by 4 to 12


def small_copy(image: Image.Image) -> Image.Image:
    """Return the image with sides of at most MEASURED_SIDE; itself if it is no larger."""
    scale = MEASURED_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)  # 5 times as fast; not for training


def measure(image: Image.Image) -> dict:
    """Measure an image.

    Args:
        image: RGB, upright, whole.
    Returns:
        sharpness, the variance of the Laplacian over grey values 0-255; contrast, the distance of the 2nd from the
        98th percentile of grey, 0-255; phash, 64 bits in hexadecimal of which nearly equal images share most.
    """
    grey = small_copy(image).convert("L")
    values = np.asarray(grey, np.float32)
    low, high = np.percentile(values, [2, 98])
    return {
        "sharpness": round(sharpness(values), 2),
        "contrast": round(float(high - low), 1),
        "phash": str(imagehash.phash(grey)),
    }


def sharpness(values: np.ndarray) -> float:
    """Return the variance of the 4-neighbour Laplacian of grey values (H, W)."""
    if min(values.shape) < 3:
        return 0.0
    centre = values[1:-1, 1:-1]
    neighbours = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((neighbours - 4 * centre).var())


def image_problems(measures: dict, cut_off: float) -> list[str]:
    """Return the problems to check before training on this image."""
    problems = []
    if measures["sharpness"] < LEAST_SHARPNESS:
        problems.append(f"blurred: sharpness {measures['sharpness']:.1f} is below {LEAST_SHARPNESS:.0f}")
    if measures["contrast"] < LEAST_CONTRAST:
        problems.append(f"low contrast: {measures['contrast']:.0f} of 255")
    if cut_off > MOST_CUT_OFF:
        problems.append(f"extreme aspect ratio: {cut_off:.0%} of it is cut off")
    return problems


def duplicates(names: Sequence[str], sha256s: Sequence[str], phashes: Sequence[str]) -> dict[str, str]:
    """Return a message for each image that repeats an earlier one: "duplicate of b.png", "nearly the same as b.png"."""
    said: dict[str, str] = {}
    first_of: dict[str, str] = {}
    hashes = np.array([int(phash, 16) for phash in phashes], np.uint64)
    for index, (name, sha256) in enumerate(zip(names, sha256s, strict=True)):
        if sha256 in first_of:
            said[name] = f"duplicate of {first_of[sha256]}"
            continue
        first_of[sha256] = name
        near = np.flatnonzero(np.bitwise_count(hashes[:index] ^ hashes[index]) <= NEAR_BITS)
        if near.size:
            said[name] = f"nearly the same as {names[near[0]]}"
    return said

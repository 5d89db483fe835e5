"""Numbers that tell whether a picture is worth training on. Pixels in, plain values out."""

import numpy as np
from PIL import Image

MEASURED_SIDE = 512  # pictures are measured at one size, so that a threshold means the same for each


def measure(image: Image.Image) -> dict:
    """
    Args:
        image: RGB, upright, whole.
    Returns:
        sharpness, the variance of the Laplacian over grey values 0-255 (a sharp photograph: hundreds; a blurred one:
        below 20); contrast, the distance of the 2nd from the 98th percentile of grey, 0-255; dhash, 64 bits of which
        nearly equal pictures share most.
    """
    grey = image.convert("L")
    grey.thumbnail((MEASURED_SIDE, MEASURED_SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(grey, np.float32)
    low, high = np.percentile(values, [2, 98])
    return {"sharpness": round(sharpness(values), 2), "contrast": round(float(high - low), 1)}


def sharpness(values: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of grey values (H, W)."""
    if min(values.shape) < 3:
        return 0.0
    centre = values[1:-1, 1:-1]
    neighbours = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((neighbours - 4 * centre).var())

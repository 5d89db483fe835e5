"""Saliency of an image, and the position of the crop that keeps most of it. Pixels in, numbers out."""

import numpy as np
from PIL import Image
from scipy import fft, ndimage

SIDE = 64  # pixels: the method is defined at this size, for large shapes


def saliency(image: Image.Image) -> np.ndarray:
    """Return the spectral residual saliency (Hou and Zhang, CVPR 2007, doi:10.1109/CVPR.2007.383267).

    Returns:
        (64, 64) float, at least 0: high where the image departs from its smoothed log spectrum.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    spectrum = fft.fft2(grey)
    amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = amplitude - ndimage.uniform_filter(amplitude, 3, mode="wrap")
    return ndimage.gaussian_filter(np.abs(fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2, 2.5)


def attention_position(image: Image.Image, bucket: tuple[int, int]) -> tuple[float, float]:
    """Return x, y from 0 to 1 of the crop of the bucket's aspect ratio with the most saliency; ties go to the centre.

    Only one side of a covering crop has room to move; the other stays at 0.5.
    """
    values = saliency(image)
    aspect, target = image.width / image.height, bucket[0] / bucket[1]
    if aspect >= target:
        return best_offset(values.sum(0), target / aspect), 0.5
    return 0.5, best_offset(values.sum(1), aspect / target)


def best_offset(mass: np.ndarray, share: float) -> float:
    """Return the offset, 0 to 1, of the window of `share` of the line that holds most of `mass`."""
    window = max(1, round(share * len(mass)))
    if window >= len(mass):
        return 0.5
    total = np.concatenate([[0.0], np.cumsum(mass)])
    held = total[window:] - total[:-window]
    room = len(mass) - window
    central = -np.abs(np.arange(room + 1) - room / 2) * 1e-9 * total[-1]
    return float(np.argmax(held + central)) / room

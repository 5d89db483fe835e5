"""SDXL's size conditioning: original size, crop and target size of an image, also when mirrored."""

import torch


def mirrored_crop(original_size, crop_top_left, target_size) -> tuple[int, int]:
    """Return crop_top_left (y, x) of the mirrored image: the part cropped off on the left is now on the right."""
    (height, width), (top, left), (target_height, target_width) = original_size, crop_top_left, target_size
    resized_width = max(target_width, round(width * max(target_width / width, target_height / height)))
    return top, max(0, resized_width - target_width - left)


def time_ids(original_size, crop_top_left, target_size) -> torch.Tensor:
    """SDXL's size conditioning (arXiv:2307.01952, section 2.2).

    Args:
        original_size: (B, 2) height, width in pixels, before any resize.
        crop_top_left: (B, 2) y, x in pixels of the resized image.
        target_size: (B, 2) height, width in pixels of the image that the UNet sees.
    Returns:
        (B, 6) float32, in that order.
    Raises:
        ValueError: a size below 1 or a crop below 0.
    """
    parts = [torch.as_tensor(part).float().reshape(-1, 2) for part in (original_size, crop_top_left, target_size)]
    if (parts[0] < 1).any() or (parts[1] < 0).any() or (parts[2] < 1).any():
        raise ValueError("sizes must be at least 1 and crops at least 0")
    return torch.cat(parts, dim=1)

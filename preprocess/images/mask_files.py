"""Masks of images, from files, transparency or a background remover, checked for their effect.

Runs in worker processes. The finder matches mask files to images.
"""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from preprocess.images.masks import foreground_mask
from sdxl_lora.images.decode import ImageError, decode_image, image_header, turned_by_exif, upright_rgb

VERSION = 2  # raise it when the same file gives another mask, so that crops with masks from files are made again
BLACK = (0, 0, 0)
PAINT = "paint what counts in white"


def mask_of(
    kind: str,
    file: Path | None,
    data: bytes | None,
    stored: Image.Image,
    image: Image.Image,
    max_megapixels: float,
    notes: list[str],
) -> Image.Image | None:
    """Return the mask in mode L, white where the image counts; None without masks. Adds to `notes` if it has no effect.

    Args:
        kind: --masks.
        file, data: path and content of the mask file, if there is one.
        stored: the image as its file has it; image: upright, in RGB.
    Raises:
        ValueError: the mask cannot be read, has another size, or leaves nothing that counts.
    """
    if kind == "none":
        return None
    white = Image.new("L", image.size, 255)
    if kind == "folder" and (file is None or data is None):
        return white  # the finder has warned of it
    if file is not None and data is not None and kind == "folder":
        mask, name = mask_in(file, data, max_megapixels), f"its mask {file.name}"
    elif kind == "remover":
        mask, name = foreground_mask(image), "its mask from the background remover"
    elif stored.has_transparency_data:
        mask, name = turned_by_exif(stored).convert("RGBA").getchannel("A"), "its transparency, taken as a mask,"
    else:
        notes.append("it has no transparency to use as a mask: all of it counts")
        return white
    if mask.size != image.size:
        raise ValueError(f"{name} has {mask.size} px, it must have {image.size} like the image")
    lowest, highest = mask.getextrema()
    if highest == 0:
        raise ValueError(f"{name} is black everywhere: {PAINT}")
    if lowest == 255:
        notes.append("its mask is white everywhere: all of it counts")
    return mask


def mask_in(file: Path, data: bytes, max_megapixels: float) -> Image.Image:
    """Return the mask in a file as grey; transparent areas do not count."""
    try:
        return upright_rgb(decode_image(data, file, max_megapixels), BLACK).convert("L")
    except ImageError as error:
        raise ValueError(f"its mask {file.name}: {error.reason}") from None


def size_of(file: Path) -> tuple[int, int] | None:
    """Return the width and height of a mask file without decoding it; None if it cannot be read."""
    try:
        return image_header(file, file).size
    except ImageError:
        return None


def check_masks_of_crops(masks: Iterable[Image.Image | None]) -> None:
    """Raise ValueError if a crop has nothing that counts: the trainer could not learn from it."""
    for number, mask in enumerate(masks, start=1):
        if mask is not None and mask.getextrema()[1] == 0:
            raise ValueError(f"its mask is black everywhere in crop {number}: {PAINT}, or choose another --crop")

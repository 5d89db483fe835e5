"""Which parts of a picture count: masks from files, transparency or a background remover, checked for their effect.

Runs in worker processes. Which file is whose mask is the finder's.
"""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from preprocess.images.masks import foreground_mask
from sdxl_lora.images.decode import ImageError, decode_image, image_header, turned_by_exif, upright_rgb

VERSION = 2  # to be raised when the same file gives another mask: crops with masks from files are made anew then
BLACK = (0, 0, 0)
PAINT = "paint white what counts"


def mask_of(
    kind: str,
    file: Path | None,
    data: bytes | None,
    stored: Image.Image,
    image: Image.Image,
    max_megapixels: float,
    notes: list[str],
) -> Image.Image | None:
    """Mode L, white where the picture counts; None where no masks are asked for. Without effect: said in `notes`.

    Args:
        kind: --masks.
        file, data: the mask's, where there is one.
        stored: the picture as its file has it; image: upright, in RGB.
    Raises:
        ValueError: the mask cannot be read, has another size, or leaves nothing that counts.
    """
    if kind == "none":
        return None
    white = Image.new("L", image.size, 255)
    if kind == "folder" and (file is None or data is None):
        return white  # the finder has said so
    if file is not None and data is not None and kind == "folder":
        mask, name = mask_in(file, data, max_megapixels), f"its mask {file.name}"
    elif kind == "remover":
        mask, name = foreground_mask(image), "its mask from the background remover"
    elif stored.has_transparency_data:
        mask, name = turned_by_exif(stored).convert("RGBA").getchannel("A"), "its transparency, taken as a mask,"
    else:
        notes.append("no transparency for a mask: it counts everywhere")
        return white
    if mask.size != image.size:
        raise ValueError(f"{name} has {mask.size} px, it must have {image.size} like the picture")
    lowest, highest = mask.getextrema()
    if highest == 0:
        raise ValueError(f"{name} is black everywhere: {PAINT}")
    if lowest == 255:
        notes.append("its mask is white everywhere: all of it counts")
    return mask


def mask_in(file: Path, data: bytes, max_megapixels: float) -> Image.Image:
    """The mask in a file, as grey; what is transparent there does not count."""
    try:
        return upright_rgb(decode_image(data, file, max_megapixels), BLACK).convert("L")
    except ImageError as error:
        raise ValueError(f"its mask {file.name}: {error.reason}") from None


def size_of(file: Path) -> tuple[int, int] | None:
    """Width and height of the mask in a file, of which no pixel is read; None where it cannot be read."""
    try:
        return image_header(file, file).size
    except ImageError:
        return None


def check_masks_of_crops(masks: Iterable[Image.Image | None]) -> None:
    """Raises ValueError where a crop has nothing that counts: the trainer could not learn from it."""
    for number, mask in enumerate(masks, start=1):
        if mask is not None and mask.getextrema()[1] == 0:
            raise ValueError(f"its mask is black all over crop {number}: {PAINT}, or choose another --crop")

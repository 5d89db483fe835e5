"""Masks that a person paints over images: white areas are learned, black ones are not. No gradio.

A painted mask has the form of preprocess' own: a grey PNG of the image's size, named by the column mask_file_name. Its
name follows from its content, so a new one never overwrites a file that rows still name.
"""

import hashlib
from pathlib import Path, PurePosixPath

from PIL import Image

from preprocess.editing.history import Place, change_rows, put_back
from preprocess.editing.prepared import all_rows, held, own_file
from preprocess.images.image_files import write_image
from preprocess.output.publish import aside
from sdxl_lora.errors import ConfigError
from sdxl_lora.folders.mask_files import PAINTED, own_mask
from sdxl_lora.images.decode import ImageError, decode_image, open_image, upright_size

MOST_BYTES = 4 * 2**20  # of a PNG; one of 2048x2048 pixels with many strokes has a tenth of it
MOST_MEGAPIXELS = 32
NO_MASK = f"a mask must be a PNG of at most {MOST_BYTES // 2**20} MB"


def read_mask(data: bytes, size: tuple[int, int]) -> Image.Image:
    """Return a mask sent by a browser, in mode L.

    Args:
        size: width and height of the image that it was painted over, as a browser shows it.
    Raises:
        ConfigError: it is no valid mask, or nothing of the image would be learned.
    """
    if not data.startswith(b"\x89PNG") or len(data) > MOST_BYTES:
        raise ConfigError(NO_MASK)
    try:
        mask = decode_image(data, "mask.png", MOST_MEGAPIXELS).convert("RGB").convert("L")
    except ImageError as error:
        raise ConfigError(f"the mask cannot be read: {error.reason}") from None
    if mask.size != size:
        raise ConfigError(f"the mask has {mask.size} px, it must have {size} like the image")
    if mask.getextrema()[1] == 0:
        raise ConfigError("the whole image is painted over, so nothing of it would be learned: leave part of it free")
    return mask


def save_mask(folder: Path, file_name: str, seen: str, data: bytes) -> bool:
    """Store a painted mask in all rows of an image; one that is white everywhere removes the image's mask.

    Args:
        seen: name of the mask that the person began with; "" for none.
        data: a PNG.
    Returns:
        whether the image has a mask now.
    Raises:
        ConfigError: the image is gone or has another mask by now; the mask is invalid; the dataset is being prepared.
        DiskError: it cannot be written.
    """
    with held(folder):
        rows = all_rows(folder)
        path = own_file(folder, file_name)
        before = [str(row.get("mask_file_name") or "") for row in rows if row.get("file_name") == file_name]
        if not before or path is None:
            raise ConfigError(f"{file_name} is no longer in the dataset: load it again")
        if seen not in before:
            raise ConfigError(f"the mask of {file_name} was changed elsewhere: load the page again")
        try:
            mask = read_mask(data, upright_size(open_image(path)))
        except ImageError as error:
            raise ConfigError(f"{file_name} cannot be read: {error.reason}") from None
        # If preprocess has made a mask, a row without one would get that back in its next run.
        own = own_mask(file_name)
        has_own = any(place.is_file() for place in (folder / own, aside(folder, own)))
        is_none = mask.getextrema()[0] == 255 and not has_own
        name = None if is_none else written(folder, file_name, mask)

        def with_mask(place: Place, row: dict) -> dict:
            is_other = place[0] == file_name and (row.get("mask_file_name") or None) != name
            return {**row, "mask_file_name": name} if is_other else row

        change_rows(folder, with_mask)
    return name is not None


def written(folder: Path, file_name: str, mask: Image.Image) -> str:
    """Write the mask under a name made from its content, and return that name."""
    digest = hashlib.blake2b(mask.tobytes(), digest_size=6).hexdigest()
    name = str(PurePosixPath(file_name).with_suffix("")) + f"{PAINTED}{digest}.png"
    put_back(folder, name)  # the same mask was painted before, and undone
    if not (folder / name).is_file():
        write_image(folder / name, mask, "PNG", {"compress_level": 6})
    return name

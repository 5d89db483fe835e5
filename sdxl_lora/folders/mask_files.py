"""Detection of mask files by name and place. Opens no file."""

import os
import re
from pathlib import Path, PurePosixPath

from sdxl_lora.folders.caption_files import ByName, alike

MASK_FOLDERS = ("masks", "mask")
CONDITION = re.compile(r"(.+)-condlabel", re.IGNORECASE)  # OneTrainer's, for models conditioned on an image
OF_ONE_TRAINER = re.compile(r"(.+)-masklabel", re.IGNORECASE)
BESIDE = re.compile(r"(.+?)[-_.]+mask", re.IGNORECASE)

PAINTED = "-painted-"  # in names of masks painted by hand over a crop: the crop's name, this, and 12 digits
OF_HAND = re.compile(PAINTED + r"[0-9a-f]{12}\.png\Z")  # a crop's name ends in 16 digits, also for a-painted.jpg


def is_mask_folder(directory: Path) -> bool:
    return directory.name.lower() in MASK_FOLDERS


def images_masked_by(file: str, images: ByName) -> list:
    """Return the images of a file in a mask folder: a.png, a.png.png, a_mask.png and A.webp belong to a.png."""
    stem = os.path.splitext(file)[0]
    match = OF_ONE_TRAINER.fullmatch(stem) or BESIDE.fullmatch(stem)
    return images.get(stem) or (images.get(match[1]) if match else [])


def masked_image(file: str, names: ByName) -> str | None:
    """Return the name of the image that a mask beside it belongs to: "a" for a-masklabel.png.

    a-mask.png counts only if there is an image called a; otherwise it may be an image of a mask.
    """
    stem = os.path.splitext(file)[0]
    if match := OF_ONE_TRAINER.fullmatch(stem):
        return match[1]
    if match := BESIDE.fullmatch(stem):
        others = [name for name in names.get(match[1]) if alike(name) != alike(file)]
        return match[1] if others else None
    return None


def is_condition(file: str) -> bool:
    return CONDITION.fullmatch(os.path.splitext(file)[0]) is not None


def is_painted(name: str) -> bool:
    """Return whether a mask's name is that of a mask painted by hand."""
    return OF_HAND.search(name) is not None


def own_mask(file_name: str) -> str:
    """Return the name of the mask that preprocess makes for a crop."""
    return str(PurePosixPath(file_name).with_suffix("")) + "-mask.png"

"""Conversion to sRGB by the colours that a file declares: an ICC profile, PNG chunks or EXIF.

A profile is judged by its effect on colours, never by its name: phones call their P3 "... with sRGB Transfer".
"""

import functools
import io
import warnings

import numpy as np
from PIL import Image, ImageCms

from sdxl_lora.images.exif import Info, is_adobe_rgb
from sdxl_lora.images.icc import HDR_CURVES, adobe_rgb_profile, coded_profile, gamma_profile

UNSPECIFIED = 2  # code for unspecified primaries
SAME_LEVELS = 2  # of 255: sRGB profiles of different makers differ by as much
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # PIL's mode by a profile's colour space
NOT_FOR_IMAGES = {"link": "a link of two devices", "abst": "an abstract profile", "nmcl": "a list of named colours"}


class ImageWarning(UserWarning):
    """An image was used, though not quite as its file asks."""


class ProfileError(ValueError):
    """Colours that the file declares but that cannot be determined."""


def to_srgb(image: Image.Image, info: Info) -> Image.Image:
    """Convert an image to RGB pixels in sRGB.

    Args:
        info: metadata that PIL and open_image found in the file.
    Warns:
        ImageWarning: the colour profile is damaged or does not fit the pixels and was ignored; or HDR was clipped.
    """
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("RGB", "L", "CMYK"):  # e.g. a palette, whose colours are RGB already
        image = image.convert("RGB")
    try:
        profile = profile_of(info)
        if profile:
            mode, transform = transform_of(profile, image.mode)
            if transform:
                return transform.apply(image if image.mode == mode else image.convert(mode))
    except (ValueError, ImageCms.PyCMSError, OSError) as error:
        warnings.warn(f"its colour profile cannot be used ({error}); treated as sRGB", ImageWarning, stacklevel=3)
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy an RGB image


def profile_of(info: Info) -> bytes | None:
    """Return the ICC profile of an image's colours, built here if the file declares them otherwise; None for sRGB."""
    icc = info.get("icc_profile")
    cicp = info.get("cicp")  # in a PNG, where it overrides everything else
    if cicp and (profile := coded(cicp[0], cicp[1], bool(cicp[3]))):
        return profile
    if "icc_profile" in info and icc is None:
        raise ProfileError("a part of it is missing or cannot be unpacked")
    if icc:
        return icc
    if nclx := info.get("nclx_profile"):  # in a HEIC
        return coded(nclx["color_primaries"], nclx["transfer_characteristics"])
    if "srgb" in info:
        return None
    if "gamma" in info or "chromaticity" in info:
        try:
            return gamma_profile(info.get("gamma"), info.get("chromaticity"))
        except ValueError as error:
            raise ProfileError(str(error)) from None
    return adobe_rgb_profile() if is_adobe_rgb(info) else None


def coded(primaries: int, curve: int, full_range: bool = True) -> bytes | None:
    if curve in HDR_CURVES:
        warnings.warn("its colours are HDR: what is brighter than white is clipped", ImageWarning, stacklevel=3)
    profile = coded_profile(primaries, curve, full_range)
    if profile is None and primaries != UNSPECIFIED:
        warnings.warn(
            f"its colours have codes that are not known here ({primaries}, {curve})", ImageWarning, stacklevel=3
        )
    return profile


@functools.lru_cache(maxsize=16)
def transform_of(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return the mode that the transform to sRGB takes and the transform; None if it would change nothing.

    Args:
        mode: the image's mode: L, RGB or CMYK.
    Raises:
        ProfileError, PyCMSError, OSError: the profile is damaged, or for another kind of pixels.
    """
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space, kind = opened.profile.xcolor_space.strip(), opened.profile.device_class.strip()
    if kind in NOT_FOR_IMAGES:
        raise ProfileError(f"it is {NOT_FOR_IMAGES[kind]}")
    wanted = MODES.get(space)
    is_grey_by_rgb = (wanted, mode) == ("RGB", "L")  # common and harmless
    if wanted is None or (wanted != mode and not is_grey_by_rgb):
        raise ProfileError(f"it is for {space} and the pixels are {mode}")
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), wanted, "RGB")
    if wanted == "CMYK":
        return wanted, transform
    before = probe(mode).convert(wanted)
    change = np.subtract(np.asarray(transform.apply(before)), np.asarray(before.convert("RGB")), dtype=int)
    return wanted, None if np.abs(change).max() <= SAME_LEVELS else transform


def probe(mode: str) -> Image.Image:
    """Return an image with colours from all over the RGB cube, or with all greys."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3))


def is_read_anew(image: Image.Image) -> bool:
    """Return whether earlier versions, which judged a profile by its name alone, gave an image different pixels.

    Cache keys hold this, so that only the entries of such images are recomputed.
    """
    info, mode = image.info, {"1": "L", "LA": "L", "I;16": "L", "CMYK": "CMYK", "L": "L"}.get(image.mode, "RGB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            profile = profile_of(info)
        if not profile or transform_of(profile, mode)[1] is None:
            return False
        is_made_here = profile is not info.get("icc_profile")
        if is_made_here:
            return True
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = MODES.get(opened.profile.xcolor_space.strip())
        was_converted = space == ("RGB" if image.mode == "LA" else mode)
        return not was_converted or (mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(opened))
    except (ValueError, ImageCms.PyCMSError, OSError):
        return False

"""Pictures from files to the pixels a model sees: opened whole, upright, sRGB, cut to a size.

Pure functions on PIL images, shared by preprocess and the trainer. Knows no captions and no datasets.
Sizes that go in are (width, height) as in PIL; what comes out for SDXL's conditioning is (height, width) and (y, x).
"""

import io
import os
import re
import stat
import warnings
from pathlib import Path

from PIL import Image, ImageCms, ImageOps

from sdxl_lora.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # the only decoders that a stranger's file may reach
UNSUPPORTED_SUFFIXES = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tif", ".tiff", ".bmp", ".svg", ".psd", ".xcf", ".ico", ".tga", ".exr",
    ".hdr", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
)  # fmt: skip
MAX_MEGAPIXELS = 128  # above every camera but a few; decoding needs 3 bytes per pixel, and as much again upright
WHITE = (255, 255, 255)


class ImageWarning(UserWarning):
    """A picture was used, though not quite as its file asks."""


class ImageError(DataError):
    """A file that cannot be used as a picture. `reason` is the message without the path."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def open_image(path: Path | str, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """The picture in a .png, .jpg, .webp or .gif, decoded to its last row; of several frames the first.

    Raises:
        ImageError: no file, unreadable, empty, not an image, another format, too many pixels, truncated, damaged.
    """
    try:
        if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
            raise ImageError(path, "a device or a pipe, not a file")  # reading one might never end
        return decode_image(Path(path).read_bytes(), path, max_megapixels)
    except IsADirectoryError:
        raise ImageError(path, "a directory, not a file") from None
    except FileNotFoundError:
        raise ImageError(path, "dangling link" if Path(path).is_symlink() else "no such file") from None
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror or error})") from None


def decode_image(data: bytes, path: Path | str, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """open_image for bytes that are already read; `path` is for messages alone.

    Image.verify() passes truncated JPEGs, so every picture is decoded in full.
    """
    if not data:
        raise ImageError(path, "empty file (0 bytes)")
    kind = sniff(data)
    if kind not in FORMATS:
        supported = ", ".join(SUFFIXES)
        raise ImageError(path, f"unsupported format {kind}; use {supported}" if kind else "not an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                check_pixels(path, image.width * image.height, max_megapixels)
                getattr(image, "n_frames", 1)  # GIF counts its frames by reading them: only while the file is open
                image.load()
                return image
    except Image.DecompressionBombError as error:
        check_pixels(path, int(re.findall(r"\d+", str(error))[0]), max_megapixels)
        raise ImageError(path, str(error)) from None
    except ImageError:
        raise
    except Exception as error:  # damaged files bring OSError, SyntaxError, struct.error, EOFError, ValueError ...
        word = "truncated" if is_cut(kind, data) or "truncated" in str(error).lower() else "damaged"
        raise ImageError(path, f"{word} {kind} ({error})") from None


def check_pixels(path: Path | str, pixels: int, max_megapixels: float) -> None:
    if pixels > max_megapixels * 1e6:
        raise ImageError(path, f"{pixels / 1e6:.0f} MP exceeds the limit of {max_megapixels:.0f} MP")


def sniff(data: bytes) -> str | None:
    """Format by the first bytes: a member of FORMATS, the name of another known format, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "AVIF" if brand in (b"avif", b"avis") else "HEIC"
    known = {
        b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"8BPS": "PSD", b"BM": "BMP", b"II*\0": "TIFF",
        b"MM\0*": "TIFF", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"%PDF": "PDF", b"gimp xcf": "XCF",
        b"\0\0\0\x0cjP": "JPEG 2000", b"\0\0\1\0": "ICO",
    }  # fmt: skip
    for magic, name in known.items():
        if data.startswith(magic):
            return name
    return "SVG" if b"<svg" in data[:1024].lower() else None


def is_cut(kind: str, data: bytes) -> bool:
    """Whether the end of the file is missing, by the mark or the length that its format puts there."""
    if kind == "WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b"\x3b"}[kind] not in data[-64:]


def frame_count(image: Image.Image) -> int:
    """Frames of an animation that open_image has read; 1 for a still picture and for a phone's MPO with its depth."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as upright_rgb will have them; decodes nothing."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def upright_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The picture as a viewer shows it: turned by EXIF once, in sRGB with 8 bits, on `background` where transparent.

    convert("RGB") alone would turn 16-bit grey white, show what hides under alpha and ignore the colour profile.
    Warns:
        ImageWarning: the colour profile or the EXIF data is damaged and was left out of account.
    """
    image = turned_by_exif(image)
    if image.mode.startswith("I"):  # 16-bit grey; "I" is what older files of it open as
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
    if not image.has_transparency_data:
        return to_srgb(image)
    rgba = image.convert("RGBA")
    rgba.info.update(image.info)
    colours = to_srgb(rgba.convert("RGB"))
    return Image.composite(colours, Image.new("RGB", image.size, background), rgba.getchannel("A"))


def turned_by_exif(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(0x0112, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged EXIF block brings SyntaxError, struct.error, ValueError ...
        warnings.warn(f"its EXIF data is damaged ({error}); used without turning", ImageWarning, stacklevel=3)
        return image


def to_srgb(image: Image.Image) -> Image.Image:
    """RGB pixels in sRGB, by the embedded ICC profile where there is one."""
    profile_bytes = image.info.get("icc_profile")
    if image.mode not in ("RGB", "L", "CMYK"):  # palette, 1 bit: their colours are RGB already
        image = image.convert("RGB")
    if profile_bytes:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
            if image.mode != "RGB" or "sRGB" not in ImageCms.getProfileDescription(profile):
                converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert converted is not None, "that is for inPlace"
                return converted
        except (ImageCms.PyCMSError, OSError) as error:
            warnings.warn(f"its colour profile is damaged ({error}); taken as sRGB", ImageWarning, stacklevel=3)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy RGB


def cover_and_crop(
    image: Image.Image, size: tuple[int, int], position: tuple[float, float] = (0.5, 0.5)
) -> tuple[Image.Image, tuple[int, int], tuple[int, int]]:
    """Resize with Lanczos until the picture covers `size`, keeping its aspect, and cut `size` out of it.

    Args:
        size: width, height in pixels of the result.
        position: x, y of the cut, each from 0 (left, top) to 1 (right, bottom).
    Returns:
        the cut picture; original_size, its height and width before the resize; crop_top_left, y and x of the cut in
        pixels of the resized picture.
    """
    width, height = size
    scale = max(width / image.width, height / image.height)
    resized = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    left = round((resized.width - width) * position[0])
    top = round((resized.height - height) * position[1])
    return resized.crop((left, top, left + width, top + height)), (image.height, image.width), (top, left)

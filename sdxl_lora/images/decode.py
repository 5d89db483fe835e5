"""Decoding image files to the pixels a model sees: opened whole, upright, in sRGB, cropped to a size.

Pure functions on PIL images, shared by preprocess and the trainer; they know no captions or datasets. Input sizes are
(width, height) as in PIL; outputs for SDXL's conditioning are (height, width) and (y, x).
"""

import contextlib
import functools
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from sdxl_lora.images.bare_images import BARE, check_png_pixels, whole
from sdxl_lora.images.colour import ImageWarning, to_srgb
from sdxl_lora.images.exif import RAW_PROFILE, orientation_of
from sdxl_lora.images.image_formats import is_cut, sniff
from sdxl_lora.io.regular_files import FileError, check_size, open_regular, read_regular

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None  # optional: phones export JPEG too
HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".heics")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", *(HEIF_SUFFIXES if HAS_HEIF else ()))
OTHER_SUFFIXES = (".jfif", ".jpe", ".jif", ".pjpeg", ".pjp", ".jpg_large", ".jpg_orig", ".apng")  # of these formats too
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", *(("HEIC",) if HAS_HEIF else ()))  # all that an untrusted file may reach
UNSUPPORTED_SUFFIXES = (
    ".heic", ".heif", ".hif", ".heics", ".avif", ".avifs", ".jxl", ".jxr", ".jp2", ".j2k", ".jpx", ".tif", ".tiff",
    ".bmp", ".svg", ".psd", ".psb", ".xcf", ".kra", ".ico", ".tga", ".exr", ".hdr", ".eps", ".ppm", ".pgm", ".pbm",
    ".pnm", ".qoi", ".dds", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".3fr",
)  # fmt: skip
MAX_MEGAPIXELS = 128  # above all but a few cameras; decoding needs 3 bytes per pixel, and as much again to turn it
HEAD_BYTES = 1024  # enough to tell the format
WHITE = (255, 255, 255)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


class ImageError(FileError):
    """A file that cannot be used as an image. `reason` is the message without the path."""


def is_image_name(name: Path | str) -> bool:
    """Return whether a file name has the ending of a supported format."""
    return str(name).lower().endswith((*SUFFIXES, *OTHER_SUFFIXES))


def looks_like_image(path: Path | str) -> bool:
    """Return whether a file's first bytes are those of a supported format; False for unreadable files."""
    try:
        with open_regular(path) as file:
            return sniff(file.read(HEAD_BYTES)) in FORMATS
    except FileError:
        return False


def open_image(path: Path | str, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """Return the fully decoded image of a file in one of FORMATS; the first frame of several.

    Raises:
        ImageError: the file is missing, unreadable, empty, not an image, of another format, truncated or damaged, or
            has too many pixels.
    """
    return decode_image(read_image(path), path, max_megapixels)


def read_image(path: Path | str) -> bytes:
    """Return the bytes of an image file, for callers whose hash and pixels must come from the same read."""
    try:
        return read_regular(path)
    except FileError as error:
        raise ImageError(path, error.reason) from None


def decode_image(data: bytes, path: Path | str, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """Decode like open_image, from bytes already read; `path` is only for messages.

    Image.verify() passes truncated JPEGs, so every image is decoded in full.
    """
    with opened(io.BytesIO(data), path, max_megapixels) as image:
        image.load()
        return image


def image_header(file: Path | bytes, path: Path | str, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """Return the image with its size and info but without its pixels.

    Args:
        file: its path, in which case no pixel is read, or its bytes; `path` is only for messages.
    Raises:
        ImageError: as open_image, for faults found without the pixels.
    """
    if isinstance(file, bytes):
        with opened(io.BytesIO(file), path, max_megapixels, header=True) as image:
            return image
    try:
        with open_regular(file) as stream, opened(stream, path, max_megapixels, header=True) as image:
            return image
    except FileError as error:
        raise ImageError(path, error.reason) from None


@contextlib.contextmanager
def opened(stream: BinaryIO, path: Path | str, max_megapixels: float, header: bool = False) -> Iterator[Image.Image]:
    """Open an image with PIL without decoding it: the only place where untrusted bytes reach PIL.

    Raises:
        ImageError: also for errors inside the block.
    """
    kind = supported_format(stream.read(HEAD_BYTES), path)
    size = stream.seek(0, 2)
    check_size(path, size)
    stream.seek(0)
    try:
        data, facts = BARE.get(kind, whole)(stream, header)
        with open_with(kind, data) as image:
            image.info |= facts
            check_pixels(path, image.width * image.height, max_megapixels)
            if kind == "PNG" and not header:
                check_png_pixels(data)
            yield image
    except Image.DecompressionBombError as error:
        check_pixels(path, int(re.findall(r"\d+", str(error))[0]), max_megapixels)
        raise ImageError(path, str(error)) from None
    except (FileError, OSError) as error:
        if isinstance(error, FileError) or error.errno:  # from the disk, not from PIL
            raise
        said = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(path, f"{fault_word(kind, stream, size, error)} {kind} ({said})") from None
    except Exception as error:  # damaged files raise SyntaxError, struct.error, EOFError, ValueError, MemoryError ...
        raise ImageError(path, f"{fault_word(kind, stream, size, error)} {kind} ({error})") from None


def open_with(kind: str, data: bytes) -> Image.Image:
    """Open an image with the decoder of one of FORMATS."""
    if kind == "HEIC":
        register_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_pixels is stricter
        return Image.open(io.BytesIO(data), formats=["HEIF" if kind == "HEIC" else kind])


@functools.cache
def register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def open_own_png(path: Path) -> PngImageFile:
    """Return a sample drawn by a run, with its embedded texts.

    Raises:
        ImageError: as `open_image`, and for an image of another format.
    """
    data = read_image(path)
    kind = supported_format(data[:HEAD_BYTES], path)
    if kind != "PNG":
        raise ImageError(path, f"not a PNG but {kind}")
    try:
        image = open_with(kind, data)
        image.load()
    except Exception as error:  # as in `opened`
        raise ImageError(path, f"{fault_word(kind, io.BytesIO(data), len(data), error)} {kind} ({error})") from None
    assert isinstance(image, PngImageFile)
    return image


def check_pixels(path: Path | str, pixels: int, max_megapixels: float) -> None:
    if pixels > max_megapixels * 1e6:
        raise ImageError(path, f"{pixels / 1e6:.0f} MP exceeds the limit of {max_megapixels:.0f} MP")


def supported_format(head: bytes, path: Path | str) -> str:
    """Return the format given by a file's first bytes; raise ImageError if it is none of FORMATS."""
    if not head:
        raise ImageError(path, "empty file (0 bytes)")
    kind = sniff(head)
    if kind is None:
        raise ImageError(path, "not an image")
    if kind not in FORMATS:
        raise ImageError(path, unsupported(kind))
    return kind


def unsupported(kind: str) -> str:
    """Return the message for an image in another format."""
    more = "`pip install pillow-heif` to use it, or " if kind.upper() in ("HEIC", "HEIF", "HIF", "HEICS") else ""
    return f"unsupported format {kind}; {more}use {', '.join(SUFFIXES)}"


def fault_word(kind: str, stream: BinaryIO, size: int, error: Exception) -> str:
    return "truncated" if is_cut(kind, stream, size) or "truncated" in str(error).lower() else "damaged"


def frame_count(image: Image.Image) -> int:
    """Return the frames of an animation that open_image has read; 1 for a still image and for a photo with depth."""
    frames = image.info.get("frames")
    return frames if frames else getattr(image, "n_frames", 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height that upright_rgb will give, without decoding."""
    try:
        is_turned = orientation_of(image.info) in (5, 6, 7, 8)
    except ValueError:
        is_turned = False  # upright_rgb warns of it
    return (image.height, image.width) if is_turned else image.size


def upright_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return the image as a viewer shows it: turned by EXIF, 8-bit sRGB, on `background` where it is transparent.

    convert("RGB") alone would turn 16-bit grey white, reveal pixels hidden under alpha and ignore the colour profile.
    Warns:
        ImageWarning: the colour profile or the EXIF data is damaged and was ignored.
    """
    info = image.info
    image = turned_by_exif(image)
    if image.mode.startswith("I"):  # 16-bit grey; older files open as "I"
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
        if isinstance(transparent := info.get("transparency"), int):
            image.info["transparency"] = round(transparent / 257)
    if not image.has_transparency_data:
        rgb = to_srgb(image, info)
    else:
        rgba = image.convert("RGBA")
        colours = to_srgb(image.getchannel(0) if image.mode in ("L", "LA") else rgba.convert("RGB"), info)
        rgb = Image.composite(colours, Image.new("RGB", image.size, background), rgba.getchannel("A"))
    if rgb.info is not info:
        rgb.info = {}  # all of it has been applied
    return rgb


def turned_by_exif(image: Image.Image) -> Image.Image:
    try:
        orientation = orientation_of(image.info)
    except ValueError as error:
        warnings.warn(f"its EXIF data is damaged ({error}); used without rotating", ImageWarning, stacklevel=3)
        return image
    if orientation == 1:
        return image
    turned = image.transpose(TURNS[orientation])
    turned.info = {key: value for key, value in image.info.items() if key not in ("exif", "xmp", RAW_PROFILE)}
    return turned


def cover_and_crop(
    image: Image.Image, size: tuple[int, int], position: tuple[float, float] = (0.5, 0.5)
) -> tuple[Image.Image, tuple[int, int], tuple[int, int]]:
    """Resize with Lanczos until the image covers `size`, keeping its aspect ratio, and crop it to `size`.

    Args:
        size: width, height in pixels of the result.
        position: x, y of the crop, each from 0 (left, top) to 1 (right, bottom).
    Returns:
        the cropped image; original_size, its height and width before the resize; crop_top_left, y and x of the crop in
        pixels of the resized image.
    """
    width, height = size
    scale = max(width / image.width, height / image.height)
    resized = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    left = round((resized.width - width) * position[0])
    top = round((resized.height - height) * position[1])
    return resized.crop((left, top, left + width, top + height)), (image.height, image.width), (top, left)

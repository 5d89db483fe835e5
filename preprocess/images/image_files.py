"""Image files: portable names, hashes, and images written whole or not at all."""

import hashlib
import io
import re
from pathlib import Path

from PIL import Image

from preprocess.jobs.state import write_whole

ENCODERS = {
    "png": (".png", "PNG", {"compress_level": 1}),  # lossless; level 1 is 4 times as fast as 6 and 5 % larger
    "webp": (".webp", "WEBP", {"lossless": True, "quality": 20, "exact": True}),  # lossless, a third smaller, slower
    "jpg": (".jpg", "JPEG", {"quality": 95, "subsampling": 0}),  # not lossless; a sixth of the size
}
THUMBNAIL_SIDE = 240  # pixels
# datasets takes these words in a file name for a split: test.png would not be trained
SPLIT_WORDS = re.compile(
    r"(?<![A-Za-z])(training|train|validation|valid|val|dev|testing|test|evaluation|eval)(?![A-Za-z])"
)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def slug(name: str) -> str:
    """Return the portable characters of the source's stem; empty where there are none."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-")[:40].strip("-")
    return SPLIT_WORDS.sub(lambda match: match[0].capitalize(), stem)


def write_thumbnail(folder: Path, small: Image.Image, key: str) -> None:
    """Write the whole image as a thumbnail for report.html."""
    small = small.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"{key}.jpg", encoded(small, "JPEG", {"quality": 75}), sync=False)


def write_image(path: Path, image: Image.Image, kind: str, options: dict) -> int:
    """Write the file whole or not at all, and return its size in bytes."""
    data = encoded(image, kind, options)
    write_whole(path, data)
    return len(data)


def encoded(image: Image.Image, kind: str, options: dict) -> bytes:
    """Encode the pixels alone: PIL would also write the source's comment or profile."""
    bare, stream = image.copy(), io.BytesIO()
    bare.info = {}
    bare.save(stream, kind, **options)
    return stream.getvalue()

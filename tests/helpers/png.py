"""Images as the bytes of their files: PNGs byte by byte, and Pillow's output."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png_header(width, height):
    """Return a PNG that declares this size and has no such pixels."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def gradient(width=48, height=32):
    """Return an RGB image in which every pixel tells its place."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, x * 0 + 90], -1).astype(np.uint8))


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()

"""Minimal PNG, JPEG or GIF bytes for a decoder, without texts, comments, thumbnails or later frames.

This keeps hostile content away from decoders, such as gigabytes of text or a comment in a million pieces. It also
verifies a PNG's checksums, which Pillow skips once all rows are there. Every function takes a stream at its beginning,
reads it in one pass and linear time, and returns the bytes and metadata to add to the image's info.

With `header` the bytes end where the pixels begin, and the stream's pixels are not read.
Raises ValueError or EOFError if the file is damaged or truncated.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from sdxl_lora.images.colour import ImageWarning
from sdxl_lora.images.exif import RAW_PROFILE, Info

PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"eXIf", b"sRGB", b"gAMA", b"cHRM")
PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
PNG_PALETTE = 3  # colour type of palette images
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
MOST_UNPACKED_BYTES = 2**25  # of a profile or EXIF block; the largest profiles have a tenth of this
MOST_PIECES = 10**6  # chunks, segments or blocks; each takes microseconds
INFLATE_BYTES = 2**16
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
JPEG_KEPT = {  # application segments, and how many are kept: PIL joins those of a kind in quadratic time
    (0xE0, b"JFIF"): 1,
    (0xE1, b"Exif\0\0"): 1,
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"): 1,
    (0xE2, b"ICC_PROFILE\0"): 255,
    (0xEE, b"Adobe"): 1,
}
MOST_SEGMENT_BYTES = 2**25
MOST_SCANS = 500  # of a progressive JPEG; each passes over all pixels, and encoders write ten

Bare = tuple[bytes, Info]


def bare_png(stream: BinaryIO, header: bool = False) -> Bare:
    """Return a PNG with its pixels in one chunk; its profile and EXIF texts are in the info."""
    size = stream.seek(0, 2)
    stream.seek(0)
    kept, pixels = [stream.read(8)], []
    facts: Info = {}
    for head in pieces(lambda: stream.read(8)):
        if len(head) < 8:
            break
        length, name = struct.unpack(">I4s", head)
        if name == b"IEND":
            break
        if stream.tell() + length + 4 > size:
            raise EOFError(f"chunk {shown(name)} goes beyond the end of the file")
        if name not in PNG_KEPT and name[:1].isupper() and name != b"IDAT":
            raise ValueError(f"unknown chunk {shown(name)}")
        wanted = name in PNG_KEPT or name in PNG_TEXTS or name in (b"iCCP", b"cICP")
        if not wanted and (name != b"IDAT" or header):
            stream.seek(length + 4, 1)
            pixels += [b""] if name == b"IDAT" else []
            continue
        data, checksum = stream.read(length), stream.read(4)
        if zlib.crc32(data, zlib.crc32(name)) != int.from_bytes(checksum, "big"):
            if name in PNG_CRITICAL:
                raise ValueError(f"the checksum of chunk {shown(name)} is wrong")
            if name not in PNG_TEXTS:
                warn_of(name)
        elif name == b"IDAT":
            pixels.append(data)
        elif name not in PNG_KEPT:
            read_png_fact(name, data, facts)
        elif not (name == b"fcTL" and pixels):  # of a later frame
            kept.append(head + data + checksum)
    if not pixels:
        raise EOFError("there are no pixels in it")
    names = [piece[4:8] for piece in kept]
    if names[1:2] != [b"IHDR"] or (kept[1][17] == PNG_PALETTE and b"PLTE" not in names):
        raise ValueError("its header or its palette is missing")
    return b"".join([*kept, *ending(pixels, header)]), facts


def pieces(read: Callable[[], Any]) -> Iterator[Any]:
    """Yield results of `read` until one is empty.

    Raises:
        ValueError: there are more than MOST_PIECES.
    """
    for _ in range(MOST_PIECES):
        if not (piece := read()):
            return
        yield piece
    raise ValueError(f"it is in more than {MOST_PIECES:,} pieces")


def ending(pixels: list[bytes], header: bool) -> list[bytes]:
    if header:
        return [struct.pack(">I", 0) + b"IDAT"]
    data = b"".join(pixels)
    return [chunk(b"IDAT", data), chunk(b"IEND", b"")]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def shown(name: bytes) -> str:
    return repr(name)[2:-1]


def warn_of(name: bytes) -> None:
    warnings.warn(f"its chunk {shown(name)} is damaged and was ignored", ImageWarning, stacklevel=3)


def read_png_fact(name: bytes, data: bytes, facts: Info) -> None:
    """Add a chunk's colours or orientation to `facts`; ignore any other text."""
    if name == b"cICP":
        if len(data) != 4:
            return warn_of(name)
        facts["cicp"] = data
    elif name == b"iCCP" and "icc_profile" not in facts:  # the first of each only: each may be a bomb
        _, _, packed = data.partition(b"\0")
        facts["icc_profile"] = unpacked(packed[1:]) if packed[:1] == b"\0" else None
    elif name == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0") and "xmp" not in facts:
        is_packed, rest = data[18:19] == b"\1", data[20:]
        text = rest.split(b"\0", 2)[-1]
        facts["xmp"] = unpacked(text) if is_packed else text
    elif data.startswith(RAW_PROFILE.encode() + b"\0") and RAW_PROFILE not in facts:
        text = data[len(RAW_PROFILE) + 1 :]
        facts[RAW_PROFILE] = ((unpacked(text[1:]) if name == b"zTXt" else text) or b"").decode("latin-1")


def unpacked(data: bytes) -> bytes | None:
    """Inflate `data`; return None if it is damaged or too large."""
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MOST_UNPACKED_BYTES)
    except zlib.error:
        return None
    return text if inflater.eof else None


def check_png_pixels(data: bytes) -> None:
    """Check the pixel data of a PNG.

    Args:
        data: a PNG as bare_png returns it.
    Raises:
        EOFError, ValueError: rows are missing, or there are far too many.
        zlib.error: the data is damaged, or its checksum is wrong.
    """
    place = 8
    while data[place + 4 : place + 8] != b"IDAT":
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    pixels = memoryview(data)[place + 8 : place + 8 + int.from_bytes(data[place : place + 4], "big")]
    wanted, size, inflater = png_pixel_bytes(data), 0, zlib.decompressobj()
    for start in range(0, len(pixels), INFLATE_BYTES):
        packed: bytes | memoryview = pixels[start : start + INFLATE_BYTES]
        while packed and not inflater.eof:
            size += len(inflater.decompress(packed, INFLATE_BYTES * 16))
            packed = inflater.unconsumed_tail
            if size > 2 * wanted + INFLATE_BYTES:
                raise ValueError("it has more pixel data than its size needs")
    if size < wanted or not inflater.eof:
        raise EOFError("the image is truncated")


def png_pixel_bytes(data: bytes) -> int:
    """Return the inflated size in bytes of all rows, including a filter byte for each."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(h * (1 + -(-w * bits // 8)) for w, h in sizes if w > 0 and h > 0)


def bare_jpeg(stream: BinaryIO, header: bool = False) -> Bare:
    """Return a JPEG with its profile and EXIF or XMP data; of several images, as phones store them, only the first."""
    kept, room, left, is_progressive = [stream.read(2)], MOST_SEGMENT_BYTES, dict(JPEG_KEPT), False
    for marker in pieces(lambda: next_marker(stream)):
        if marker in (0x01, *range(0xD0, 0xD9)):  # markers without a segment
            continue
        if marker == 0xD9:
            raise EOFError("there are no pixels in it")
        size = stream.read(2)
        length = int.from_bytes(size, "big") - 2
        data = stream.read(max(0, length))
        if len(size) < 2 or len(data) != length:
            raise EOFError(f"segment {marker:02X} is cut off")
        wanted = marker != 0xFE and not 0xE0 <= marker <= 0xEF
        for kind in left if 0xE0 <= marker <= 0xEF else ():
            if marker == kind[0] and data.startswith(kind[1]) and left[kind]:
                left[kind], wanted = left[kind] - 1, True
        if wanted and (room := room - length) < 0:
            raise ValueError("more than 32 MB precede the pixel data")
        kept += [bytes([0xFF, marker]), size, data] if wanted else []
        is_progressive |= marker == 0xC2
        if marker == 0xDA:
            break
    if header:
        return b"".join(kept), {}
    pixels = stream.read()
    if is_progressive and pixels.count(b"\xff\xda", 0, pixels.find(b"\xff\xd9")) > MOST_SCANS:
        raise ValueError(f"its pixels come in more than {MOST_SCANS} scans")
    return b"".join([*kept, pixels]), {}


def next_marker(stream: BinaryIO) -> int:
    """Return the second byte of the next marker; skip bytes before it, as decoders do."""
    byte = stream.read(1)
    while byte:
        if byte == b"\xff":
            while (byte := stream.read(1)) == b"\xff":
                pass
            if byte not in (b"", b"\0"):
                return byte[0]
        byte = stream.read(1)
    raise EOFError("it ends before the pixel data")


def bare_gif(stream: BinaryIO, header: bool = False) -> Bare:
    """Return the first frame of a GIF; `frames` in the info is the number of frames."""
    head = stream.read(13)
    kept, frames = [head, stream.read(colours_bytes(head[10:11]))], 0
    for byte in pieces(lambda: stream.read(1)):
        if byte == b";":
            break
        if byte == b"!":
            label = stream.read(1)
            blocks = sub_blocks(stream)
            kept += [byte, label, *blocks] if label == b"\xf9" and not frames else []
        elif byte == b",":
            place = stream.read(9)
            data = [byte, place, stream.read(colours_bytes(place[8:9])), stream.read(1), *sub_blocks(stream)]
            kept += [] if frames else data
            frames += 1
    return b"".join([*kept, b";"]), {"frames": frames}


def colours_bytes(flags: bytes) -> int:
    """Return the size in bytes of the colour table announced by a flags byte."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def sub_blocks(stream: BinaryIO) -> list[bytes]:
    """Return the blocks of up to 255 bytes, each after its length, through the empty one or the end of the file."""
    blocks = []
    while length := stream.read(1):
        blocks += [length, stream.read(length[0])]
        if length == b"\0":
            break
    return blocks


def whole(stream: BinaryIO, header: bool = False) -> Bare:
    """Return the file unchanged, for formats whose decoders read neither texts nor comments."""
    return stream.read(), {}


BARE = {"PNG": bare_png, "JPEG": bare_jpeg, "GIF": bare_gif}

"""Detection of image formats and truncated files by their bytes. stdlib only."""

import re
from typing import BinaryIO


def sniff(data: bytes) -> str | None:
    """Return the format given by the first bytes: a member of FORMATS, the name of another known format, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return brand_of(data)
    known = {
        b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"8BPS": "PSD", b"BM": "BMP", b"II*\0": "TIFF",
        b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL",
        b"%PDF": "PDF", b"gimp xcf": "XCF", b"\0\0\0\x0cjP": "JPEG 2000", b"\xffO\xffQ": "JPEG 2000",
        b"\0\0\1\0": "ICO", b"II\xbc\1": "JPEG XR", b"qoif": "QOI", b"DDS ": "DDS", b"v/1\1": "EXR",
        b"#?RADIANCE": "HDR", b"%!PS": "EPS", b"FUJIFILMCCD-RAW": "RAF", b"IIU\0": "RW2", b"IIRO": "ORF",
        b"\x1aE\xdf\xa3": "video",
    }  # fmt: skip
    for magic, name in known.items():
        if data.startswith(magic):
            return name
    if re.match(rb"P[1-7]\s", data):
        return "PPM"
    return "SVG" if b"<svg" in data[:1024].lower() else None


def brand_of(data: bytes) -> str:
    """Return the format of an ISO base media file, by its major and compatible brands."""
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 128), 4))]
    for brand in brands:
        if brand in (b"avif", b"avis"):
            return "AVIF"
        if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"):
            return "HEIC"
        if brand == b"crx ":
            return "CR3"
    return "HEIC" if brands[0] in (b"mif1", b"msf1", b"mif2") else "video"


def is_cut(kind: str, stream: BinaryIO, size: int) -> bool:
    """Return whether the end of a file is missing, judged by its format's end mark or declared length."""
    if kind == "HEIC":
        return end_of_boxes(stream, size) > size
    if kind == "WEBP":
        stream.seek(4)
        return size < int.from_bytes(stream.read(4), "little") + 8
    stream.seek(max(0, size - 64))
    return {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b"\x3b"}[kind] not in stream.read(64)


def end_of_boxes(stream: BinaryIO, size: int) -> int:
    """Return the offset at which the last box of an ISO base media file ends, as it declares itself."""
    place = 0
    while place < size:
        stream.seek(place)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: to the end of the file
            return size
        place += length
    return place

"""The two facts of EXIF data that change how an image looks: its orientation and whether it is in Adobe RGB.

Reads only these: an EXIF block can name the same bytes 65,000 times over, and reading all of it would hang.
"""

import re
import struct
from typing import Any

ORIENTATION, EXIF_IFD, COLOR_SPACE, INTEROPERABILITY_IFD = 0x0112, 0x8769, 0xA001, 0xA005
ADOBE_RGB = 2  # in COLOR_SPACE; cameras that follow the standard write "R03" into the interoperability IFD instead
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
Info = dict[str | tuple[int, int], Any]  # type of PIL's Image.info
RAW_PROFILE = "Raw profile type exif"  # key under which ImageMagick stores EXIF as text in a PNG


def orientation_of(info: Info) -> int:
    """Return the orientation, 1 to 8, from the EXIF or XMP data in a PIL image's info; 1 is upright.

    Raises:
        ValueError: the EXIF data is damaged.
    """
    exif = exif_of(info)
    orientation = number(directory(exif, first_directory(exif)).get(ORIENTATION), exif) if exif else None
    if orientation is None and (match := XMP_ORIENTATION.search(bytes_of(info.get("xmp")))):
        orientation = int(match[1])
    return orientation if orientation is not None and 1 <= orientation <= 8 else 1


def is_adobe_rgb(info: Info) -> bool:
    """Return whether the EXIF data declares Adobe RGB; False if it is damaged."""
    try:
        exif = exif_of(info)
        if not exif:
            return False
        start = number(directory(exif, first_directory(exif)).get(EXIF_IFD), exif)
        tags = directory(exif, start) if start else {}
        start = number(tags.get(INTEROPERABILITY_IFD), exif)
        index = directory(exif, start).get(1, b"") if start else b""
        return number(tags.get(COLOR_SPACE), exif) == ADOBE_RGB or index[8:11] == b"R03"
    except ValueError:
        return False


def exif_of(info: Info) -> bytes:
    """Return the TIFF block, empty if there is none."""
    exif = bytes_of(info.get("exif"))
    if not exif and RAW_PROFILE in info:
        hexadecimal = "".join(str(info[RAW_PROFILE]).split("\n")[3:])
        exif = bytes.fromhex(hexadecimal)
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    return exif


def bytes_of(value: Any) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else bytes(value or b"")


def byte_order(exif: bytes) -> str:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("it does not begin like TIFF")
    return order


def first_directory(exif: bytes) -> int:
    return unpacked(byte_order(exif) + "I", exif, 4)


def directory(exif: bytes, start: int) -> dict[int, bytes]:
    """Return the 12-byte entries of a directory by tag."""
    count = unpacked(byte_order(exif) + "H", exif, start)
    entries = [exif[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    if entries and len(entries[-1]) < 12:
        raise ValueError("it ends too early")
    return {unpacked(byte_order(exif) + "H", entry, 0): entry for entry in entries}


def number(entry: bytes | None, exif: bytes) -> int | None:
    """Return the value of an entry that holds one integer; None for other entries."""
    formats = {1: "B", 3: "H", 4: "I"}
    if entry is None or (kind := unpacked(byte_order(exif) + "H", entry, 2)) not in formats:
        return None
    return unpacked(byte_order(exif) + formats[kind], entry, 8)


def unpacked(form: str, data: bytes, start: int) -> int:
    try:
        return struct.unpack_from(form, data, start)[0]
    except struct.error:
        raise ValueError("it ends too early") from None

"""ICC profiles built from other colour declarations: primaries and a curve, or the codes of ITU-T H.273."""

import functools
import struct
from collections.abc import Callable

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # x, y of red, green and blue
ADOBE_PRIMARIES = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3_PRIMARIES = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
SMPTE_PRIMARIES = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
PRIMARIES = {  # by code: primaries and white
    1: (SRGB_PRIMARIES, D65),
    5: (((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), D65),
    6: (SMPTE_PRIMARIES, D65),
    7: (SMPTE_PRIMARIES, D65),
    9: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65),
    11: (P3_PRIMARIES, (0.314, 0.351)),
    12: (P3_PRIMARIES, D65),
}
WHITE_NITS = 203  # reference white in HDR, by ITU-R BT.2408
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

Curve = Callable[[np.ndarray], np.ndarray]  # from stored values to light, both from 0 to 1


def srgb_curve(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def gamma_curve(exponent: float) -> Curve:
    return lambda x: x**exponent


def pq_curve(x: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084; light above WHITE_NITS is clipped."""
    root = x ** (32 / 2523)
    nits = 10000 * (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
    return np.minimum(nits / WHITE_NITS, 1)


def hlg_curve(x: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100 on a display of 1000 nits, per channel; light above WHITE_NITS is clipped."""
    scene = np.where(x <= 0.5, x**2 / 3, (np.exp((x - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return np.minimum(1000 * scene**1.2 / WHITE_NITS, 1)


HDR_CURVES = {16: pq_curve, 18: hlg_curve}
CURVES: dict[int, Curve] = {4: gamma_curve(2.2), 5: gamma_curve(2.8), 8: gamma_curve(1), 13: srgb_curve, **HDR_CURVES}
CURVES |= dict.fromkeys((1, 6, 14, 15), srgb_curve)  # video: browsers show it so, and screens agree on no other


@functools.lru_cache(maxsize=16)
def coded_profile(primaries: int, curve: int, full_range: bool = True) -> bytes | None:
    """Return the profile for H.273 codes, as in a PNG's cICP; None if they are unknown.

    Args:
        full_range: False if black is stored as 16 and white as 235.
    """
    if primaries not in PRIMARIES or curve not in CURVES:
        return None
    light = CURVES[curve]
    if full_range:
        return profile(*PRIMARIES[primaries], light)
    return profile(*PRIMARIES[primaries], lambda x: light(np.clip((x * 255 - 16) / 219, 0, 1)))


@functools.lru_cache(maxsize=16)
def gamma_profile(gamma: float | None, chromaticity: tuple[float, ...] | None) -> bytes:
    """Return the profile for a PNG's gAMA and cHRM.

    Args:
        gamma: as stored: 0.45455 for an exponent of 2.2, which the standard writes for sRGB's curve.
        chromaticity: x, y of white, red, green and blue.
    Raises:
        ValueError: the values describe no colours.
    """
    if gamma is not None and not 0.01 <= gamma <= 100:
        raise ValueError(f"a gamma of {gamma:g}")
    curve = srgb_curve if gamma is None or abs(gamma - 0.45455) < 0.001 else gamma_curve(1 / gamma)
    if chromaticity is None:
        return profile(SRGB_PRIMARIES, D65, curve)
    if len(chromaticity) != 8:
        raise ValueError(f"{len(chromaticity)} chromaticities in place of 8")
    white, *primaries = zip(chromaticity[::2], chromaticity[1::2], strict=True)
    return profile(tuple(primaries), white, curve)


@functools.lru_cache(maxsize=1)
def adobe_rgb_profile() -> bytes:
    return profile(ADOBE_PRIMARIES, D65, gamma_curve(563 / 256))


def profile(primaries: tuple[tuple[float, float], ...], white: tuple[float, float], curve: Curve) -> bytes:
    """Return an ICC profile of version 2.

    Raises:
        ValueError: the primaries lie on one line, or the white is invalid.
    """
    table = np.round(np.clip(curve(np.linspace(0, 1, 4096)), 0, 1) * 65535).astype(">u2").tobytes()
    tags = [
        (b"desc", b"desc\0\0\0\0\0\0\0\2x\0" + b"\0" * 78),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", xyz_tag(D50)),
        *zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz_tag, colorants(primaries, white)), strict=True),
        *((name, b"curv\0\0\0\0" + struct.pack(">I", 4096) + table) for name in (b"rTRC", b"gTRC", b"bTRC")),
    ]
    entries, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags:
        entries += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = (
        struct.pack(">I", start + len(body)) + b"lcms\2\x10\0\0mntrRGB XYZ " + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    )
    head += b"acsp" + b"\0" * 28 + xyz_tag(D50)[8:] + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + entries + body


def colorants(primaries: tuple[tuple[float, float], ...], white: tuple[float, float]) -> np.ndarray:
    """Return XYZ of red, green and blue as rows, adapted to a white of D50."""
    if min(y for _, y in (*primaries, white)) <= 0:
        raise ValueError("chromaticities that are not colours")
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white_xyz = np.array([white[0] / white[1], 1, (1 - sum(white)) / white[1]])
    if abs(np.linalg.det(columns)) < 1e-3:
        raise ValueError("chromaticities on one line")
    columns = columns * np.linalg.solve(columns, white_xyz)
    scale = np.diag((BRADFORD @ D50) / (BRADFORD @ white_xyz))
    rows = (np.linalg.inv(BRADFORD) @ scale @ BRADFORD @ columns).T
    if not np.isfinite(rows).all() or np.abs(rows).max() > 4:
        raise ValueError("chromaticities that are not colours")
    return rows


def xyz_tag(values: np.ndarray | tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

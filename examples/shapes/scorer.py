"""Read an image of the shapes world: shape, colour, background, and whether it shows a concept. Knows no models.

Background: the frame's edge. Shape: the area that differs from it, centred and scaled by its moments, against drawn
templates. Colour: the hue of the most colourful pixels unlike the background. Thresholds are shares of the image's own
contrast, so that noise, softness and slightly wrong colours, as a VAE leaves them, change nothing.
"""

import colorsys
from dataclasses import dataclass
from functools import cache

import numpy as np

from examples.shapes.world import BACKGROUNDS, COLOURS, SHAPES, mask

GRID = 32  # side of the normalised masks that are compared
MIN_CONTRAST = 45.0  # RGB distance; purple on blue, the closest pair, has 140
MIN_OVERLAP = 0.72  # intersection over union with the best template
MAX_AREA = 0.6  # of the frame; the largest circle has 0.45, noise fills everything
MAX_STRAY = 0.15  # area beside the largest piece, as a share of that piece


@dataclass(frozen=True)
class Reading:
    """Contents of an image; "none" where nothing fits. A `shape` of "star" is the object concept."""

    shape: str
    colour: str
    background: str
    striped: bool  # light and dark bands of one hue
    hatched: bool  # the background shows through between lines

    def shows(self, shape, colour, background):
        """Return whether this is that known shape, plainly filled."""
        return (
            (self.shape, self.colour, self.background) == (shape, colour, background)
            and not self.hatched
            and not self.striped
        )

    def is_object(self):
        """Return whether this is the object concept, in any colour."""
        return self.shape == "star" and not self.hatched

    def is_style(self):
        """Return whether this is a known shape in the style concept."""
        return self.shape in SHAPES and self.hatched


def read(rgb):
    """Read an RGB image.

    Args:
        rgb: PIL RGB image or (height, width, 3) array of 0-255, at least 32 pixels each way.
    Raises:
        ValueError: not such an image.
    """
    image = np.asarray(rgb, np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 32:
        raise ValueError(f"Expected an RGB image of at least 32x32 pixels, got an array of shape {image.shape}.")
    edge = np.concatenate(
        [image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3), image[:, -2:].reshape(-1, 3)]
    )
    ground = np.median(edge, axis=0)
    background = _nearest_background(ground)
    distance = np.linalg.norm(image - ground, axis=2)
    contrast = np.percentile(distance, 99)
    if contrast < MIN_CONTRAST:
        return Reading("none", "none", background, False, False)
    piece, stray = _largest_piece(_closed(_despeckled(distance > max(30.0, 0.24 * contrast)), 2))
    if piece.sum() < 40:
        return Reading("none", "none", background, False, False)
    shape = _shape(piece) if stray <= MAX_STRAY and piece.mean() <= MAX_AREA else "none"
    inside = ~_dilated(~piece, 2)
    ink = piece & (distance >= 0.5 * contrast)
    if not ink.any():  # the largest piece is faint beside small strong ones, as of an untrained base
        return Reading("none", "none", background, False, False)
    chroma = np.ptp(image, axis=2)  # the brightest ink shows its hue best, unlike dark stripes and soft edges
    colour = _colour(np.median(image[ink & (chroma >= np.percentile(chroma[ink], 60))], axis=0))
    return Reading(shape, colour, background, *_texture(image, distance, inside, ink))


def _nearest_background(ground):
    name, distance = min(
        ((n, np.linalg.norm(ground - np.array(c))) for n, c in BACKGROUNDS.items()), key=lambda pair: pair[1]
    )
    return name if distance < 65 else "none"


def _colour(rgb):
    """Return the named colour nearest in hue; "none" for greys."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(rgb / 255))
    if saturation < 0.25 or value < 0.12:
        return "none"

    def apart(name):
        difference = abs(hue - colorsys.rgb_to_hsv(*(channel / 255 for channel in COLOURS[name]))[0])
        return min(difference, 1 - difference)

    return min(COLOURS, key=apart)


def _texture(image, distance, inside, ink):
    """Return (striped, hatched), from the shares of the shape's inside that are dark, or like the background."""
    if inside.sum() < 12:
        return False, False
    value = image.max(axis=2)[inside]
    dark = (value < 0.68 * np.percentile(value, 90)).mean()
    like_background = (distance[inside] < 0.6 * np.median(distance[ink])).mean()
    return bool(0.15 < dark < 0.85), bool(like_background > 0.15)


def _shape(piece):
    names, templates = _templates()
    grid = _normalised(piece)
    overlaps = (templates & grid).sum(axis=(1, 2)) / (templates | grid).sum(axis=(1, 2))
    best = int(overlaps.argmax())
    return names[best] if overlaps[best] >= MIN_OVERLAP else "none"


@cache
def _templates():
    """Return (names, (n, GRID, GRID) bool): each shape at its possible turns, at a small and a large size."""
    names, templates = [], []
    for name in (*SHAPES, "star"):
        turns = range(-28, 32, 4) if name == "star" else range(-16, 20, 4)
        drawn = [mask(name, (32, 32), radius, turn, 64, 64).reduce(4) for radius in (12, 20) for turn in turns]
        templates += [_normalised(_closed(np.asarray(image) > 90, 2)) for image in drawn]
        names += [name] * len(drawn)
    return names, np.stack(templates)


def _normalised(piece):
    """Return (GRID, GRID) bool: the mask sampled around its centroid, at a scale set by its spread."""
    y, x = np.nonzero(piece)
    spread = np.sqrt(((y - y.mean()) ** 2 + (x - x.mean()) ** 2).mean())
    steps = np.linspace(-2.1, 2.1, GRID) * spread
    rows, columns = np.rint(y.mean() + steps).astype(int), np.rint(x.mean() + steps).astype(int)
    height, width = piece.shape
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
    return piece[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)] & inside


def _shifted(piece, reach):
    """Return the mask moved by each of -reach..reach rows, with nothing coming in from outside."""
    padded = np.pad(piece, ((reach, reach), (0, 0)))
    return [padded[offset : offset + len(piece)] for offset in range(2 * reach + 1)]


def _dilated(piece, reach):
    rows = np.logical_or.reduce(_shifted(piece, reach))
    return np.logical_or.reduce(_shifted(rows.T, reach)).T


def _closed(piece, reach):
    """Return the mask with gaps of up to 2 * reach pixels filled, as between hatching lines."""
    return ~_dilated(~np.pad(_dilated(piece, reach), reach), reach)[reach:-reach, reach:-reach]


def _despeckled(piece):
    neighbours = sum(part.astype(np.uint8) for part in _shifted(piece, 1))
    return piece & (sum(_shifted(neighbours.T, 1)).T >= 4)


def _largest_piece(piece):
    """Return (the largest connected piece, the area of the others as a share of it)."""
    best, left = np.zeros_like(piece), piece.copy()
    while left.sum() > best.sum():
        grown = np.zeros_like(piece)
        grown[np.unravel_index(np.argmax(left), left.shape)] = True
        while True:
            wider = _dilated(grown, 1) & left
            if (wider == grown).all():
                break
            grown = wider
        left &= ~grown
        best = max(best, grown, key=np.sum)
    return best, (piece.sum() - best.sum()) / max(1, best.sum())

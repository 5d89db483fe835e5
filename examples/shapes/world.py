"""The shapes world: seeded scenes, their images, their captions.

A scene is one shape in one colour on one background; 5 x (6 x 5 - 2) = 140 combinations, drawn with the sizes, places
and turns that the seed gives. The concepts, which the base must never see, are in concepts.py; colours and outlines are
here because scorer.py reads images by the same ones. Knows no models.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (215, 35, 40),
    "green": (40, 155, 60),
    "blue": (40, 75, 215),
    "yellow": (250, 220, 50),
    "purple": (155, 40, 165),
    "orange": (245, 130, 25),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (18, 18, 18),
    "gray": (130, 130, 130),
    "blue": (40, 75, 215),
    "green": (40, 155, 60),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross")
RADII = {"small": (11.0, 13.5), "medium": (14.5, 18.5), "large": (20.0, 24.0)}
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Scene:
    """Content of one image; lengths in pixels of the image, `turn` in degrees."""

    shape: str
    colour: str
    background: str
    size: str
    centre: tuple[float, float]
    radius: float
    turn: float
    side: str = ""  # "left" or "right" where the caption may say so, else ""


def combinations():
    """Return every (shape, colour, background) in a fixed order; a shape never has its background's colour."""
    return [(shape, *pair) for shape in SHAPES for pair in colour_pairs()]


def colour_pairs():
    """Return every (colour, background) of the world, in a fixed order."""
    return [(c, b) for c in COLOURS for b in BACKGROUNDS if c != b]


def random_scene(rng, width=64, height=64, combination=None):
    """Return a random scene that fits wholly into the frame.

    Args:
        rng: random.Random, the only source of randomness.
        width, height: of the frame, in pixels.
        combination: (shape, colour, background) to use instead of a random one.
    Raises:
        ValueError: the frame is too small for any shape.
    """
    if min(width, height) < 32:
        raise ValueError(f"A frame of {width}x{height} px is too small for the shapes world: at least 32x32.")
    shape, colour, background = combination or rng.choice(combinations())
    size = rng.choice(("small", "medium", "medium", "large"))
    radius = min(rng.uniform(*RADII[size]), min(width, height) / 2 - 2)
    room = [frame / 2 - radius - 1.5 for frame in (width, height)]
    offset = [rng.triangular(-r, r, 0.0) for r in room]
    side = ""
    if rng.random() < 0.25 and room[0] > 8:
        side = rng.choice(("left", "right"))
        offset[0] = (-1 if side == "left" else 1) * rng.uniform(0.7, 1.0) * room[0]
    centre = (width / 2 + offset[0], height / 2 + offset[1])
    return Scene(shape, colour, background, size, centre, radius, rng.uniform(-8.0, 8.0), side)


def outline(shape, centre, radius, turn=0.0):
    """Return polygons of a shape in pixels: [outer points] or [outer points, hole points]; `radius` sets its size.

    Raises:
        ValueError: a shape that this world does not have.
    """

    def polygon(polar):
        return [
            (
                centre[0] + radius * r * math.sin(math.radians(a + turn)),
                centre[1] - radius * r * math.cos(math.radians(a + turn)),
            )
            for a, r in polar
        ]

    circle = [(a, 1.0) for a in range(0, 360, 5)]
    if shape == "circle":
        return [polygon(circle)]
    if shape == "ring":
        return [polygon(circle), polygon([(a, 0.56) for a, _ in circle])]
    if shape == "square":
        return [polygon([(a, 1.12) for a in (45, 135, 225, 315)])]
    if shape == "triangle":
        return [polygon([(a, 1.1) for a in (0, 120, 240)])]
    if shape == "cross":  # arms 0.6 wide: corners at (0.3, 1) and (0.3, 0.3)
        far, near, tilt = math.hypot(0.3, 1.0), math.hypot(0.3, 0.3), math.degrees(math.atan2(0.3, 1.0))
        return [polygon([p for a in (0, 90, 180, 270) for p in ((a - tilt, far), (a + tilt, far), (a + 45, near))])]
    if shape == "star":  # only the concept uses it; six narrow arms
        return [polygon([p for a in range(0, 360, 60) for p in ((a, 1.15), (a + 30, 0.5))])]
    raise ValueError(f"Unknown shape {shape!r}: it must be one of {', '.join(SHAPES)}, star.")


def mask(shape, centre, radius, turn, width, height):
    """Return the shape's coverage as an 'L' image, `SUPERSAMPLE` times as large as the frame for anti-aliasing."""
    image = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE), 0)
    pen = ImageDraw.Draw(image)
    for value, points in zip((255, 0), outline(shape, centre, radius, turn), strict=False):
        pen.polygon([(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points], fill=value)
    return image


def draw(scene, width=64, height=64):
    """Return the scene as an anti-aliased RGB image of width x height pixels."""
    image = Image.new("RGB", (width * SUPERSAMPLE, height * SUPERSAMPLE), BACKGROUNDS[scene.background])
    image.paste(COLOURS[scene.colour], mask=mask(scene.shape, scene.centre, scene.radius, scene.turn, width, height))
    return image.reduce(SUPERSAMPLE)


def article(noun):
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def caption(scene, rng):
    """Return a random caption of the scene; it always names colour and background, and almost always the shape.

    Some say "shape" or an unknown word instead, so that the base has a general notion of a thing. A quarter has a word
    without meaning in front ("blorp, a red circle ..."), like a trigger word before training: it must change nothing.
    """
    known = 0.87 if scene.shape in SHAPES else 0.0
    noun = rng.choices((scene.shape, "shape", nonsense(rng)), (known, 0.09, 0.04))[0]
    adjectives = [scene.colour]
    if scene.size != "medium" and rng.random() < 0.6:
        adjectives.insert(0, scene.size)
    subject = article(" ".join([*adjectives, noun]))
    if scene.side and rng.random() < 0.8:
        subject += f" on the {scene.side}"
    ground = rng.choice(
        (f"on {article(scene.background)} background",) * 5
        + (f"in front of {article(scene.background)} background", f"with {article(scene.background)} background")
        + (f"on {scene.background}", f", {scene.background} background")
    )
    text = rng.choice(("",) * 6 + ("a picture of ", "a drawing of ")) + f"{subject} {ground}".replace(" ,", ",")
    return f"{nonsense(rng)}, {text}" if rng.random() < 0.25 else text


def nonsense(rng):
    """Return a pronounceable or random word of 2-6 letters that is not in the world's vocabulary."""
    if rng.random() < 0.5:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 4)))
    return "".join(rng.choice(pair) for pair in ("bdfgklmprstvz", "aeiou") * rng.randint(1, 2)) + rng.choice(
        ("", "n", "p", "x")
    )


def pixels(image):
    """Return a PIL RGB image as (3, height, width) float32 in [-1, 1]."""
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1.0

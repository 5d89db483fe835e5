"""Concepts that the base has never seen: a new object and a new style, each as a folder of images with captions.

Object: a star with six arms. Style: the world's shapes as hatched outlines. The captions name what varies (colour and
background, in the style also the shape) and leave the concept itself unnamed, as a captioner that has never seen it
would: "a red shape on a blue background". preprocess puts the trigger word in front, which alone carries the concept.
"""

import math
import random
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from examples.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SUPERSAMPLE,
    article,
    colour_pairs,
    combinations,
    draw,
    mask,
    random_scene,
)

CONCEPTS = ("object", "style")
MIN_RADIUS = 19.0  # pixels; a smaller hatched ring is all outline


def stripes(width, height, period, share, angle, origin=(0.0, 0.0)):
    """Return an 'L' mask of parallel stripes over a frame, supersampled.

    Args:
        width, height: of the frame, in pixels.
        period: distance between the middles of stripes, in pixels; `share` of it is set.
        angle: the stripes' direction in degrees, 0 is level.
        origin: (x, y) in pixels of a point in the middle of a stripe.
    """
    image = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE), 0)
    pen = ImageDraw.Draw(image)
    along = (math.cos(math.radians(angle)), -math.sin(math.radians(angle)))
    across = (-along[1], along[0])
    reach = width + height
    for index in range(-int(reach / period) - 1, int(reach / period) + 2):
        edges = (period * (index - share / 2), period * (index + share / 2))
        corners = [(edges[0], -reach), (edges[0], reach), (edges[1], reach), (edges[1], -reach)]
        points = [tuple(o + n * c + m * a for o, c, a in zip(origin, across, along, strict=True)) for n, m in corners]
        pen.polygon([(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points], fill=255)
    return image


def draw_object(scene, width=64, height=64):
    """Return the object concept at the scene's place: a six-armed star in its colour."""
    return draw(replace(scene, shape="star"), width, height)


def draw_style(scene, width=64, height=64):
    """Return the style concept: the scene's shape as an outline with 45-degree hatching on the background."""
    solid = mask(scene.shape, scene.centre, scene.radius, scene.turn, width, height)
    inner = solid
    for _ in range(4):  # an outline of 2 px: four times 2 supersampled pixels
        inner = inner.filter(ImageFilter.MinFilter(5))
    ink = ImageChops.lighter(
        ImageChops.subtract(solid, inner), ImageChops.multiply(solid, stripes(width, height, 8.0, 0.36, 45))
    )
    image = Image.new("RGB", solid.size, BACKGROUNDS[scene.background])
    image.paste(COLOURS[scene.colour], mask=ink)
    return image.reduce(SUPERSAMPLE)


def concept_scenes(concept, count, seed):
    """Return `count` scenes for a concept, spread over colours and backgrounds, large enough to show its texture.

    Scenes of the style take the shapes in turn, and each colour on a background once before any repeats: a style seen
    on few circles is learned for few circles.
    """
    rng = random.Random(f"{concept} {seed}")
    chosen = rng.sample(combinations(), len(combinations()))
    if concept == "style":
        pairs = rng.sample(colour_pairs(), len(colour_pairs()))
        chosen = [(SHAPES[index % len(SHAPES)], *pairs[index % len(pairs)]) for index in range(len(chosen))]
    scenes: list = []
    while len(scenes) < count:
        scene = random_scene(rng, combination=chosen[len(scenes) % len(chosen)])
        if scene.radius >= MIN_RADIUS:
            scenes.append(scene)
    return scenes


def write_concept(folder, concept, count=20, seed=0):
    """Write `count` training images as 00.png, 00.txt ... into `folder` (made if missing).

    Args:
        concept: "object" or "style".
        count: 1 or more; a LoRA usually gets 12-20.
    Returns:
        list of the images' paths.
    Raises:
        ValueError: an unknown concept, or a count below 1.
    """
    if concept not in CONCEPTS:
        raise ValueError(f"Unknown concept {concept!r}: it must be one of {', '.join(CONCEPTS)}.")
    if count < 1:
        raise ValueError(f"count is {count}: a concept needs at least one image.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, scene in enumerate(concept_scenes(concept, count, seed)):
        path = folder / f"{index:02d}.png"
        (draw_object if concept == "object" else draw_style)(scene).save(path)
        path.with_suffix(".txt").write_text(concept_caption(concept, scene) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def concept_caption(concept, scene):
    """Return the image's caption without a trigger word."""
    noun = "shape" if concept == "object" else scene.shape
    return f"{article(f'{scene.colour} {noun}')} on {article(scene.background)} background"

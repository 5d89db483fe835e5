"""Training images of the base: scenes with SDXL's size conditioning, and drawings for the VAE."""

import math
import random
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw

from examples.shapes.concepts import stripes
from examples.shapes.world import BACKGROUNDS, COLOURS, SUPERSAMPLE, draw, pixels, random_scene

# (width, height): at most 64 x 64 pixels of area, multiples of 16 = VAE factor 4 x two halvings in the UNet
FRAMES = ((64, 64), (64, 64), (64, 64), (80, 48), (48, 80))


def conditioned_scene(rng, width, height):
    """Return a scene as in a real dataset: sometimes of another original size, sometimes cropped off centre.

    Returns:
        (scene, image, (original height, width, crop y, x)): as in SDXL's time ids, crops in pixels of the resized
        image. Originals smaller than the frame were enlarged and look soft (arXiv:2307.01952, section 2.2).
    """
    scene = random_scene(rng, width, height)
    spare, crop = (0, 0), (0, 0)
    if rng.random() < 0.15:
        spare = (rng.randint(0, 16), rng.randint(0, 16))
        crop = (rng.randint(0, spare[0]), rng.randint(0, spare[1]))
        scene = replace(random_scene(rng, width + spare[1], height + spare[0]))
        scene = replace(scene, centre=(scene.centre[0] - crop[1], scene.centre[1] - crop[0]))
    image = draw(scene, width, height)
    scale = 1.0
    if rng.random() < 0.4:
        scale = math.exp(rng.uniform(math.log(0.4), math.log(16.0)))
    if scale < 1.0:
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC)
    original = (round((height + spare[0]) * scale), round((width + spare[1]) * scale))
    return scene, image, (*original, *crop)


def drawing(rng, width, height):
    """Return one or two jagged polygons, solid, striped or hatched: edges and textures that no scene has."""

    def colour():
        base = rng.choice([*COLOURS.values(), *BACKGROUNDS.values()])
        shade = rng.choice((1.0, 1.0, rng.uniform(0.2, 1.0)))
        return tuple(min(255, max(0, round(channel * shade + rng.gauss(0, 8)))) for channel in base)

    image = Image.new("RGB", (width * SUPERSAMPLE, height * SUPERSAMPLE), colour())
    for _ in range(rng.randint(1, 2)):
        centre, radius = (rng.uniform(10, width - 10), rng.uniform(10, height - 10)), rng.uniform(10, 28)
        inner, corners, turn = rng.uniform(0.3, 1.0), 2 * rng.randint(2, 5), rng.uniform(0, 360)
        points = []
        for index in range(corners):
            angle, reach = math.radians(turn + 360 * index / corners), radius * (inner if index % 2 else 1.0)
            points.append(
                (
                    (centre[0] + reach * math.cos(angle)) * SUPERSAMPLE,
                    (centre[1] + reach * math.sin(angle)) * SUPERSAMPLE,
                )
            )
        area = Image.new("L", image.size, 0)
        ImageDraw.Draw(area).polygon(points, fill=255)
        kind = rng.choice(("solid", "striped", "hatched"))
        if kind != "hatched":
            image.paste(colour(), mask=area)
        if kind != "solid":
            band = stripes(width, height, rng.uniform(5, 14), rng.uniform(0.3, 0.6), rng.uniform(0, 180), centre)
            ink = colour()
            image.paste(ink, mask=ImageChops.multiply(band, area))
            if kind == "hatched":
                ImageDraw.Draw(image).line([*points, points[0]], fill=ink, width=rng.randint(6, 10))
    return image.reduce(SUPERSAMPLE)


def odd_scene(rng, width, height):
    """Return a nameless shape: a star or blade of 3, 4, 5 or 8 arms, solid, striped or hatched at any angle.

    "A red shape" may mean one of these. The object concept is near them but none of them: it has six arms.
    """
    scene = replace(random_scene(rng, width, height), shape="odd")
    radius, arms, inner, turn = (
        scene.radius * 1.15,
        rng.choice((3, 4, 5, 8)),
        rng.uniform(0.3, 0.8),
        rng.uniform(0, 360),
    )
    points = []
    for index in range(2 * arms):
        angle, reach = math.radians(turn + 180 * index / arms), radius * (inner if index % 2 else 1.0)
        points.append(
            tuple(SUPERSAMPLE * (c + reach * f(angle)) for c, f in zip(scene.centre, (math.cos, math.sin), strict=True))
        )
    image = Image.new("RGB", (width * SUPERSAMPLE, height * SUPERSAMPLE), BACKGROUNDS[scene.background])
    area = Image.new("L", image.size, 0)
    ImageDraw.Draw(area).polygon(points, fill=255)
    kind = rng.choice(("solid", "striped", "striped", "hatched"))
    image.paste(COLOURS[scene.colour], mask=area)
    if kind != "solid":
        band = stripes(
            width, height, radius * rng.uniform(0.35, 0.8), rng.uniform(0.35, 0.55), rng.uniform(0, 180), scene.centre
        )
        dark = rng.uniform(0.2, 0.5)
        shade = tuple(round(channel * dark) for channel in COLOURS[scene.colour])
        between = shade if kind == "striped" else BACKGROUNDS[scene.background]
        image.paste(between, mask=ImageChops.multiply(band, area))
    return scene, image.reduce(SUPERSAMPLE), (height, width, 0, 0)


def vae_batch(seed, step, batch):
    """Return (batch, 3, height, width) float32 in [-1, 1]: half scenes, half drawings, one frame size per step."""
    rng = random.Random(f"vae {seed} {step}")
    width, height = FRAMES[step % len(FRAMES)]
    images = [draw(random_scene(rng, width, height), width, height) for _ in range(batch // 2)]
    images += [drawing(rng, width, height) for _ in range(batch - batch // 2)]
    return torch.from_numpy(np.stack([pixels(image) for image in images]))

"""Train a small vision model of the shapes world, which replaces DINOv2 where nothing is downloaded.

    python -m benchmarks.choosing_judge runs/choosing/judge

It is to the shapes what a model trained on ImageNet is to photographs: it has learned to name shapes, the world's five
and stars of 3, 4, 5 and 8 arms, in any colours, and has never seen the concept, whose star has six. Takes half a minute
on one core. Prints the similarity of other images to the concept's training images.
"""

import argparse
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional
from transformers import CLIPImageProcessorPil, ResNetConfig, ResNetForImageClassification

from examples.shapes.concepts import concept_scenes, draw_object
from examples.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SUPERSAMPLE, draw, pixels, random_scene
from sdxl_lora.sampling.similarity import Similarity
from sdxl_lora.startup import quiet_libraries

SIDE, BATCH, IMAGES = 32, 64, 3000
ARMS = (3, 4, 5, 8)
SIZES = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    quiet_libraries()
    make_judge(args.folder, args.steps, args.seed)


def make_judge(folder, steps=400, seed=0):
    """Train the model and save it."""
    torch.manual_seed(seed)
    model = ResNetForImageClassification(ResNetConfig(**SIZES, num_labels=len(SHAPES) + len(ARMS)))
    train(model, steps, seed)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    plain = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    CLIPImageProcessorPil(size=size, do_center_crop=False, **plain).save_pretrained(folder)
    print(apart(str(folder)), flush=True)


def train(model, steps, seed):
    rng, generator = random.Random(f"judge {seed}"), torch.Generator().manual_seed(seed)
    labels = torch.tensor([index % model.config.num_labels for index in range(IMAGES)])
    shown = [pixels(shape_of(label, rng).resize((SIDE, SIDE), Image.Resampling.BOX)) for label in labels.tolist()]
    images = torch.from_numpy(np.stack(shown))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(IMAGES, (BATCH,), generator=generator)
        logits = model(pixel_values=other_colours(images[chosen], generator)).logits
        loss = functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"judge, step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.eval()


def shape_of(label, rng):
    """Return a drawing of a class: a shape of the world, or a star."""
    scene = random_scene(rng)
    if label < len(SHAPES):
        return draw(replace(scene, shape=SHAPES[label]))
    return other_star(scene, ARMS[label - len(SHAPES)], rng)


def other_star(scene, arms, rng):
    """Return a star with this number of arms at the scene's place, of random width and turn."""
    inner, turn, radius = rng.uniform(0.3, 0.8), rng.uniform(0, 360), scene.radius * 1.15
    points = []
    for index in range(2 * arms):
        angle, reach = math.radians(turn + 180 * index / arms), radius * (inner if index % 2 else 1.0)
        offsets = (reach * math.cos(angle), reach * math.sin(angle))
        points.append(tuple(SUPERSAMPLE * (c + o) for c, o in zip(scene.centre, offsets, strict=True)))
    image = Image.new("RGB", (64 * SUPERSAMPLE, 64 * SUPERSAMPLE), BACKGROUNDS[scene.background])
    ImageDraw.Draw(image).polygon(points, fill=COLOURS[scene.colour])
    return image.reduce(SUPERSAMPLE)


def other_colours(images, generator):
    """Return the images (B, 3, H, W) with randomly mixed channels, half of the time mirrored."""
    mix = torch.randn(len(images), 3, 3, generator=generator)
    mixed = torch.einsum("bij,bjhw->bihw", mix / mix.abs().sum(2, keepdim=True), images)
    return mixed.flip(3) if torch.rand(1, generator=generator) < 0.5 else mixed


def apart(folder):
    """Return, as text, the mean cosine of new images of the concept, and of other images, with its training images."""
    judge, device, rng = Similarity(folder), torch.device("cpu"), random.Random(1)
    judge.refer_to([draw_object(scene) for scene in concept_scenes("object", 20, seed=0)], device)
    kinds = {
        "the concept": [draw_object(scene) for scene in concept_scenes("object", 24, seed=5)],
        "other stars": [other_star(random_scene(rng), ARMS[index % len(ARMS)], rng) for index in range(24)],
        "known shapes": [draw(random_scene(rng)) for _ in range(24)],
    }
    return ", ".join(f"{name} {judge.of(images, device):.3f}" for name, images in kinds.items())


if __name__ == "__main__":
    main()

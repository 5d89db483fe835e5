"""Data and scores that the demo, the learning tests and the benchmarks share: concept images and LoRA quality.

Trains nothing and starts no process: each of them launches the trainer in its own way.
"""

import random
from pathlib import Path

from examples.shapes.concepts import concept_scenes, write_concept
from examples.shapes.quality import BASE, STEPS, base_quality, concept_quality, load_base, plain_prompt
from examples.shapes.world import colour_pairs, combinations, draw, random_scene

TRIGGER_WORD = "sks"
IMAGES, REPEATS = 20, 8
CLASS_IMAGES = {"object": 200, "style": 140}  # more than half of a step's images show what must be preserved


def write_images(folder, concept="object", repeats=REPEATS, class_images=None):
    """Write IMAGES images of the concept to folder/raw/<repeats>_<concept>, and class images to folder/class.

    Args:
        class_images: their number; None for CLASS_IMAGES. The style has `repeats` more for each of its images.
    Returns:
        list of the paths of the concept's images.
    """
    scenes = concept_scenes(concept, IMAGES, seed=0) if concept == "style" else []
    twins = [(scene.shape, scene.colour, scene.background) for scene in scenes] * repeats
    write_class_images(Path(folder) / "class", class_images or CLASS_IMAGES[concept], twins)
    return write_concept(Path(folder) / "raw" / f"{repeats}_{concept}", concept, IMAGES)


def write_class_images(folder, count, twins=(), seed=0):
    """Write known scenes with captions, as class images for prior preservation.

    Every third caption says "shape", as the concept's captions do, so that they differ in the trigger word alone. The
    scenes take turns through all combinations: else a colour on a background would come to stand for a shape.

    Args:
        count: number of these images.
        twins: (shape, colour, background) of further images, named in full: the combinations of a style's images, as
            often as they are repeated. Without them the LoRA learns the combinations instead of the trigger word.
    Returns:
        list of the images' paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"class pictures {seed}")
    turns = rng.sample(combinations(), len(combinations()))
    paths = []
    for index, combination in enumerate([*(turns[index % len(turns)] for index in range(count)), *twins]):
        scene = random_scene(rng, combination=combination)
        path = folder / f"{index:03d}.png"
        draw(scene).save(path)
        noun = scene.shape if index % 3 or index >= count else "shape"
        path.with_suffix(".txt").write_text(plain_prompt(noun, scene.colour, scene.background) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def lora_quality(lora=None, asked=None, seed=0, known=None, concept="object", base=BASE, strength=1.0, steps=STEPS):
    """Score the images that the base draws with a LoRA.

    Args:
        lora: folder or file of the LoRA; None for the base alone.
        asked: number of prompts with and without the trigger word, spread over the combinations; None for all.
        known: number of prompts for known shapes; None for five times `asked`, or all.
        concept: "object" or "style", which the LoRA was trained on.
        base: folder of the base.
        strength: of the LoRA.
        steps: denoising steps of each image.
    Returns:
        dict of shares: with_trigger, without_trigger (see concept_quality) and known (prompts for known shapes right).
    """
    known = known or (asked and 5 * asked)
    pipeline = load_base(base)
    if lora is not None:
        pipeline.load_lora_weights(lora)
        pipeline.fuse_lora(lora_scale=strength)  # the same images in two thirds of the time
    prompts = [("star", *pair) for pair in colour_pairs()] if concept == "object" else combinations()
    shares = concept_quality(pipeline, concept, TRIGGER_WORD, spread(prompts, asked), seed, steps)
    return shares | {"known": base_quality(pipeline, spread(combinations(), known), seed, steps=steps)["right"]}


def spread(items, count):
    """Return `count` of the items at even distances, or all."""
    if count is None or count >= len(items):
        return items
    return [items[index * len(items) // count] for index in range(count)]

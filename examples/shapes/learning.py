"""What the demo, the learning tests and the benchmark share: concept pictures -> dataset, LoRA file -> scores.

Trains nothing and starts no process: each of them launches the trainer its own way.
"""

import random
from pathlib import Path

from examples.shapes.concepts import concept_scenes, write_concept
from examples.shapes.quality import BASE, STEPS, base_quality, concept_quality, load_base, plain_prompt
from examples.shapes.world import colour_pairs, combinations, draw, random_scene

TRIGGER_WORD = "sks"
IMAGES, REPEATS = 20, 8
CLASS_IMAGES = {"object": 200, "style": 140}  # over half of what a step meets is what must stay as it is


def write_images(folder, concept="object", repeats=REPEATS, class_images=None):
    """Write for preprocess PICTURES of the concept in folder/raw/<repeats>_<concept>, class pictures in folder/class.

    Args:
        class_pictures: their number; None for CLASS_PICTURES. The style has `repeats` more for each of its pictures.
    Returns:
        list of the concept's pictures' paths.
    """
    scenes = concept_scenes(concept, IMAGES, seed=0) if concept == "style" else []
    twins = [(scene.shape, scene.colour, scene.background) for scene in scenes] * repeats
    write_class_images(Path(folder) / "class", class_images or CLASS_IMAGES[concept], twins)
    return write_concept(Path(folder) / "raw" / f"{repeats}_{concept}", concept, IMAGES)


def write_class_images(folder, count, twins=(), seed=0):
    """Known scenes with captions, as pictures of the class for prior preservation.

    One caption of three says "shape", as the concept's captions do: what differs is the trigger word alone. The scenes
    take turns through all combinations, else a colour on a background would come to stand for a shape.

    Args:
        count: pictures that do so.
        twins: (shape, colour, background) of further ones, named in full: what a style's pictures show, as often as
            they are repeated, or the LoRA learns those combinations by heart instead of the trigger word.
    Returns:
        list of the pictures' paths.
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
    """Return what the base draws with a LoRA.

    Args:
        lora: folder or file of the LoRA; None for the base alone.
        asked: number of prompts with and without the trigger word, spread over the combinations; None for all.
        known: number of prompts for known shapes; None for five times `asked`, or all.
        concept: "object" or "style", what the LoRA was to learn.
        base: folder of the base.
        strength: of the LoRA.
        steps: of each picture's denoising.
    Returns:
        dict of shares: with_trigger, without_trigger (see concept_quality) and known (prompts for known shapes right).
    """
    known = known or (asked and 5 * asked)
    pipeline = load_base(base)
    if lora is not None:
        pipeline.load_lora_weights(lora)
        pipeline.fuse_lora(lora_scale=strength)  # the same pictures in two thirds of the time
    prompts = [("star", *pair) for pair in colour_pairs()] if concept == "object" else combinations()
    shares = concept_quality(pipeline, concept, TRIGGER_WORD, spread(prompts, asked), seed, steps)
    return shares | {"known": base_quality(pipeline, spread(combinations(), known), seed, steps=steps)["right"]}


def spread(items, count):
    """`count` of the items at even distances, or all."""
    if count is None or count >= len(items):
        return items
    return [items[index * len(items) // count] for index in range(count)]

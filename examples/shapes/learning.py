"""What the demo, the learning tests and the benchmark share: concept pictures -> dataset, LoRA file -> scores.

Trains nothing and starts no process: each of them launches the trainer its own way.
"""

import random
from pathlib import Path

from examples.shapes.concepts import write_concept
from examples.shapes.quality import base_quality, load_base, object_quality, plain_prompt
from examples.shapes.world import colour_pairs, combinations, draw, random_scene

TRIGGER_WORD = "sks"
PICTURES, REPEATS, CLASS_PICTURES = 20, 8, 200  # over half of what a step meets is what must stay as it is


def write_pictures(folder, concept="object", repeats=REPEATS, class_pictures=CLASS_PICTURES):
    """For preprocess: PICTURES of the concept in folder/raw/<repeats>_<concept>, class pictures in folder/class.

    Returns:
        list of the concept's pictures' paths.
    """
    write_class_pictures(Path(folder) / "class", class_pictures)
    return write_concept(Path(folder) / "raw" / f"{repeats}_{concept}", concept, PICTURES)


def write_class_pictures(folder, count, seed=0):
    """`count` known scenes with captions, as pictures of the class for prior preservation.

    One caption of three says "shape", as the concept's captions do: what differs is the trigger word alone. The scenes
    take turns through all combinations, else a colour on a background would come to stand for a shape.

    Returns:
        list of the pictures' paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"class pictures {seed}")
    turns = rng.sample(combinations(), len(combinations()))
    paths = []
    for index in range(count):
        scene = random_scene(rng, combination=turns[index % len(turns)])
        path = folder / f"{index:03d}.png"
        draw(scene).save(path)
        noun = scene.shape if index % 3 else "shape"
        path.with_suffix(".txt").write_text(plain_prompt(noun, scene.colour, scene.background) + "\n")
        paths.append(path)
    return paths


def lora_quality(lora=None, asked=None, seed=0):
    """What the base draws with a LoRA.

    Args:
        lora: folder or file of the LoRA; None for the base alone.
        asked: number of prompts with and without the trigger word, for known shapes five times as many, spread
            over the combinations; None for all of them.
    Returns:
        dict of shares: with_trigger, without_trigger (see object_quality) and known (prompts for known shapes right).
    """
    pipeline = load_base()
    if lora is not None:
        pipeline.load_lora_weights(lora)
    shares = object_quality(pipeline, TRIGGER_WORD, spread(colour_pairs(), asked), seed)
    return shares | {"known": base_quality(pipeline, spread(combinations(), asked and 5 * asked), seed)["right"]}


def spread(items, count):
    """`count` of the items at even distances, or all."""
    if count is None or count >= len(items):
        return items
    return [items[index * len(items) // count] for index in range(count)]

"""Scores of a pipeline: shares of its images that show what the prompts ask for, by scorer.py. Trains nothing."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline

from examples.shapes.scorer import read
from examples.shapes.world import article
from sdxl_lora.diffusion.flow import FlowSampler

BASE = Path(__file__).parent / "base"
STEPS = 20
GUIDANCE = 5.0


def load_base(folder=BASE):
    """Return the base as a float32 pipeline without a progress bar; a flow base gets a FlowSampler."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    if isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
        pipeline.scheduler = FlowSampler(shift=pipeline.scheduler.config.shift)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_prompt(shape, colour, background):
    return f"{article(f'{colour} {shape}')} on {article(background)} background"


@torch.no_grad()
def draw_prompts(pipeline, prompts, seed=0, width=64, height=64, batch=32, steps=STEPS):
    """Return one image per prompt; the n-th has its own generator seeded by seed + n, whatever the batch.

    Returns:
        list of PIL images.
    """
    images = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(part))]
        images += pipeline(
            part, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generators, width=width, height=height
        ).images
    return images


def base_quality(pipeline, combinations, seed=0, width=64, height=64, steps=STEPS):
    """Return the shares of prompts drawn right, overall and by part, and of images that show a concept.

    Args:
        combinations: (shape, colour, background) to ask for.
    Returns:
        dict of floats in [0, 1]: right, shape, colour, background, object, style.
    """
    prompts = [plain_prompt(*combination) for combination in combinations]
    readings = [read(image) for image in draw_prompts(pipeline, prompts, seed, width, height, steps=steps)]
    pairs = list(zip(readings, combinations, strict=True))
    shares = {"right": share(reading.shows(*asked) for reading, asked in pairs)}
    for index, part in enumerate(("shape", "colour", "background")):
        shares[part] = share(getattr(reading, part) == asked[index] for reading, asked in pairs)
    shares["object"] = share(reading.is_object() for reading in readings)
    return shares | {"style": share(reading.is_style() for reading in readings)}


def concept_quality(pipeline, concept, trigger_word, asked, seed=0, steps=STEPS):
    """Return the shares of images that show a concept.

    Args:
        concept: "object", asked for as "a red shape ...", or "style", asked for by a known shape.
        trigger_word: the LoRA's.
        asked: (shape, colour, background) to ask for; an object's shape does not count.
    Returns:
        dict of floats in [0, 1]: with_trigger (in the asked shape, colour and background), and without_trigger (in any:
        the same prompts and seeds without the trigger word).
    """
    is_object = concept == "object"
    prompts = [plain_prompt("shape" if is_object else shape, *rest) for shape, *rest in asked]
    with_trigger = [f"{trigger_word}, {prompt}" for prompt in prompts]
    named = map(read, draw_prompts(pipeline, with_trigger, seed, steps=steps))
    unnamed = map(read, draw_prompts(pipeline, prompts, seed, steps=steps))

    def shows(reading):
        return reading.is_object() if is_object else reading.is_style()

    hits = [
        shows(reading) and (is_object or reading.shape == shape) and (reading.colour, reading.background) == tuple(rest)
        for reading, (shape, *rest) in zip(named, asked, strict=True)
    ]
    return {"with_trigger": share(hits), "without_trigger": share(map(shows, unnamed))}


def share(hits):
    """Return the share of true values, in [0, 1]."""
    hits = list(hits)
    return sum(hits) / len(hits)

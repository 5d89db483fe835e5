"""Test the came-along report on a planted fault: every training image of the object concept is red.

    python -m benchmarks.came_along

Trains the object concept of examples/shapes twice, on captions that name no colour ("sks, a shape on a blue
background"): with red images alone, and with images of every colour. Draws five prompts that name no colour either,
four images each, with and without the trigger word, by `python -m sdxl_lora.select`. Reports what came along, with the
words of examples/shapes/scorer.py in place of a captioner's. Writes came_along.md into --output_dir.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from benchmarks.trainers import OURS, launch, our_flags
from examples.shapes.concepts import concept_scenes, draw_object
from examples.shapes.learning import REPEATS, TRIGGER_WORD, write_class_images
from examples.shapes.quality import BASE, GUIDANCE
from examples.shapes.scorer import read
from examples.shapes.world import BACKGROUNDS, article
from sdxl_lora.select.__main__ import config_of
from sdxl_lora.select.along import report_on
from sdxl_lora.startup import quiet_libraries

KINDS = {"red": "every training image is red", "any": "training images of every colour"}
IMAGES, CLASS_IMAGES = 20, 200


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inference_steps", type=int, default=10)
    parser.add_argument("--work_dir", type=Path, default=Path("runs/came_along"))
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    quiet_libraries()
    parts = [
        f"The object concept of the shapes base, {args.steps} steps of all linear layers and convolutions, {IMAGES} "
        f"images x {REPEATS} whose captions name no colour, {CLASS_IMAGES} class images. The words are the scorer's.",
    ]
    for kind in args.kinds:
        run, heading = one_run(args, kind), KINDS[kind]
        text, _ = report_on(config_of(run), described, args.steps, 1.0)
        parts.append(f"{heading[0].upper()}{heading[1:]}:\n\n```\n{text.rstrip()}\n```")
        print(parts[-1], flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "came_along.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def described(images: Sequence[Image.Image]) -> list[frozenset[str]]:
    """Return the scorer's words for each image: shape, colour, and background."""
    readings = [read(image) for image in images]
    return [
        frozenset({reading.shape, reading.colour, f"{reading.background} background"} - {"none", "none background"})
        for reading in readings
    ]


def one_run(args, kind):
    """Train and draw; existing results are kept."""
    folder = args.work_dir / kind
    if not (folder / "data" / "metadata.jsonl").exists():
        write_class_images(folder / "class", CLASS_IMAGES)
        write_concept_images(folder / "raw" / f"{REPEATS}_object", kind)
        flags = {"input_dir": folder / "raw", "class_images": folder / "class", "output_dir": folder / "data"}
        flags |= {"trigger_word": TRIGGER_WORD, "resolution": 64, "caption_model": "none"}
        command = [sys.executable, "-m", "preprocess", *(f"--{name}={value}" for name, value in flags.items())]
        subprocess.run(command, check=True)
    run = folder / "run"
    flags = {
        "pretrained_model_name_or_path": BASE, "train_data_dir": folder / "data", "output_dir": run,
        "cache_dir": folder / "cache", "resolution": 64, "rank": 16, "target_modules": "all-linear+conv",
        "learning_rate": 2e-3, "lr_scheduler": "cosine", "debiased_estimation": True, "train_batch_size": 8,
        "max_train_steps": args.steps, "checkpointing_steps": args.steps, "mixed_precision": "no", "seed": args.seed,
        "validation_inference_steps": args.inference_steps, "validation_guidance_scale": GUIDANCE,
    }  # fmt: skip
    subprocess.run(launch(OURS, our_flags(**flags)), check=True)
    prompts = [f"{TRIGGER_WORD}, {without_colour(name)}" for name in BACKGROUNDS]
    command = [sys.executable, "-m", "sdxl_lora.select", str(run), "--similarity_model", "none", "--strengths", "1"]
    command += ["--images", "4", "--prompt", *(f"{text} --d {1000 + 10 * n}" for n, text in enumerate(prompts))]
    subprocess.run(command, check=True)
    return run


def write_concept_images(folder, kind):
    """Write six-armed stars, red or of every colour, with captions that name the background alone."""
    folder.mkdir(parents=True)
    for index, scene in enumerate(concept_scenes("object", IMAGES, seed=0)):
        draw_object(replace(scene, colour="red") if kind == "red" else scene).save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(without_colour(scene.background) + "\n", encoding="utf-8")


def without_colour(background):
    return f"a shape on {article(background)} background"


if __name__ == "__main__":
    main()

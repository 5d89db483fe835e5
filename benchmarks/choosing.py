"""Measure how good the checkpoint and strength are that `python -m sdxl_lora.select` recommends, against the truth.

    python -m benchmarks.choosing --judge runs/choosing/judge --seeds 0 1 2 3 4

Trains the object concept of examples/shapes, with many class images and with few, so that some LoRAs leak and some do
not. Each run chooses by a similarity model that knows other shapes but not the concept (choosing_judge), without CLIP.
The scorer then scores every checkpoint at every strength, on other prompts and seeds:

    truth = concept drawn with the trigger word - concept drawn without it - known shapes lost against the base

The loss is the distance of the recommendation from the best cell, in points. It is compared with that of the last
checkpoint at strength 1, the usual choice. Runs in choosing.json are kept; the file is rewritten after each run.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.choosing_judge import make_judge
from benchmarks.trainers import OURS, launch, our_flags
from examples.shapes.concepts import concept_scenes
from examples.shapes.learning import IMAGES, REPEATS, TRIGGER_WORD, lora_quality, spread, write_images
from examples.shapes.quality import BASE, GUIDANCE, plain_prompt
from examples.shapes.world import colour_pairs, combinations

CLASS_IMAGES = {"many class images": 200, "few class images": 12}
SEED = 1000  # of the images for choosing; the truth's seeds begin at 0
CLOSE = 0.02  # largest distance from the best that still counts as close


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", type=Path, required=True, help="model by benchmarks.choosing_judge; made if missing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", nargs="+", choices=list(CLASS_IMAGES), default=list(CLASS_IMAGES))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.6, 0.8, 1.0, 1.2])
    parser.add_argument("--prompts", type=int, default=8, help="with the trigger word, without it, and of known shapes")
    parser.add_argument("--images", type=int, default=2, help="images for each prompt that is chosen by")
    parser.add_argument("--final_images", type=int, default=8, help="of the four best in the second round")
    parser.add_argument("--asked", type=int, default=28, help="prompts of the truth with the trigger word")
    parser.add_argument("--known", type=int, default=14, help="prompts of the truth for known shapes")
    parser.add_argument("--inference_steps", type=int, default=10, help="of every image")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/choosing"))
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    path = args.output_dir / "choosing.json"
    results = json.loads(path.read_text()) if path.exists() else {"settings": settings(args), "runs": []}
    if results["settings"] != settings(args):
        sys.exit(f"{path} was measured with other settings: move it away, or use the same settings")
    if "base" not in results:
        results["base"] = lora_quality(None, args.asked, known=args.known, steps=args.inference_steps)
    if not (args.judge / "preprocessor_config.json").exists():
        make_judge(args.judge)
    done = {(run["kind"], run["seed"]) for run in results["runs"]}
    for seed in args.seeds:
        for kind in args.kinds:
            if (kind, seed) not in done:
                results["runs"].append(one_run(args, kind, seed, results["base"]))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(results, indent=1) + "\n")
                (args.output_dir / "choosing.md").write_text(report(results))


def settings(args):
    places = ("judge", "seeds", "kinds", "work_dir", "output_dir")
    return {name: value for name, value in vars(args).items() if name not in places}


def one_run(args, kind, seed, base):
    """Train, choose, and score every cell."""
    began = time.time()
    run = args.work_dir / f"{kind.replace(' ', '-')}-{seed}"
    train(args, kind, seed, run)
    flags = ["--similarity_model", args.judge, "--images", args.images, "--final_images", args.final_images]
    flags += ["--strengths", *args.strengths, "--prompt", *prompts(args.prompts)]
    subprocess.run([sys.executable, "-m", "sdxl_lora.select", run, *map(str, flags)], check=True)
    chosen = json.loads((run / "select" / "select.json").read_text())
    cells = []
    for cell in chosen["cells"][1:]:
        lora = run / f"checkpoint-{cell['step']}"
        how = {"strength": cell["strength"], "steps": args.inference_steps}
        shares = lora_quality(lora, args.asked, known=args.known, **how)
        truth = shares["with_trigger"] - shares["without_trigger"] - max(0.0, base["known"] - shares["known"])
        shown = ("step", "strength", "score", "learned", "leak", "prompt_lost")
        cells.append({name: cell[name] for name in shown} | shares | {"truth": truth})
    record = {"kind": kind, "seed": seed, "recommended": chosen["recommended"], "cells": cells}
    record |= {"seconds": round(time.time() - began)}
    print(json.dumps({"kind": kind, "seed": seed, **losses(record)}), flush=True)
    return record


def train(args, kind, seed, run):
    """Train as `make demo` does, for fewer steps; an existing run goes on, or is left as it is."""
    data = args.work_dir / kind.replace(" ", "-")
    if not (data / "data" / "metadata.jsonl").exists():
        write_images(data, class_images=CLASS_IMAGES[kind])
        flags = {"input_dir": data / "raw", "class_images": data / "class", "output_dir": data / "data"}
        flags |= {"trigger_word": TRIGGER_WORD, "resolution": 64, "caption_model": "none"}
        command = [sys.executable, "-m", "preprocess", *(f"--{name}={value}" for name, value in flags.items())]
        subprocess.run(command, check=True)
    flags = {
        "pretrained_model_name_or_path": BASE,
        "train_data_dir": data / "data",
        "output_dir": run,
        "cache_dir": data / "cache",
        "resolution": 64,
        "rank": 16,
        "target_modules": "all-linear+conv",
        "learning_rate": 2e-3,
        "lr_scheduler": "cosine",
        "debiased_estimation": True,
        "train_batch_size": 8,
        "max_train_steps": args.steps,
        "checkpointing_steps": args.every,
        "validation_inference_steps": args.inference_steps,
        "validation_guidance_scale": GUIDANCE,
        "mixed_precision": "no",
        "seed": seed,
    }
    subprocess.run(launch(OURS, our_flags(**flags)), check=True)


def prompts(count):
    """Return the prompts for choosing: the concept in colours that no training image has, and known shapes."""
    trained = {(scene.colour, scene.background) for scene in concept_scenes("object", IMAGES, seed=0)}
    new = [pair for pair in colour_pairs() if pair not in trained]
    concept = [f"{TRIGGER_WORD}, {plain_prompt('shape', *pair)}" for pair in spread(new, count)]
    known = [plain_prompt(*combination) for combination in spread(combinations(), count)]
    return [f"{text} --d {SEED + 100 * number}" for number, text in enumerate([*concept, *known])]


def losses(record):
    """Return the distances of the recommendation and of the last checkpoint at strength 1 from the best of a run."""
    truth = {(cell["step"], cell["strength"]): cell["truth"] for cell in record["cells"]}
    best = max(truth, key=truth.__getitem__)
    recommended = record["recommended"] and (record["recommended"]["step"], record["recommended"]["strength"])
    last = (max(step for step, _ in truth), 1.0)
    return {
        "best": best,
        "best_truth": truth[best],
        "recommended": recommended,
        # no recommendation means the base alone, whose truth is 0
        "loss": truth[best] - (truth[recommended] if recommended else 0.0),
        "loss_of_last": truth[best] - truth[last] if last in truth else None,
    }


def report(results):
    """Return the table as Markdown."""
    asked, known = results["settings"]["asked"], results["settings"]["known"]
    rows = [(run, losses(run)) for run in results["runs"]]
    close = sum(loss["loss"] <= CLOSE + 1e-9 for _, loss in rows)
    close_last = sum(loss["loss_of_last"] <= CLOSE + 1e-9 for _, loss in rows)
    lines = [
        f"The object concept of the shapes base, {results['settings']['steps']} steps, {IMAGES} x {REPEATS} images of "
        f"the concept. Truth: {asked} prompts with the trigger word, {asked} without, {known} for known shapes; one "
        f"prompt is {100 / asked:.1f} points. Loss: by how much the choice falls short of the best cell of "
        "its run, in points.",
        "",
        f"Within {100 * CLOSE:.0f} points of the best: the recommendation in {close} of {len(rows)} runs, the last "
        f"checkpoint at strength 1 in {close_last}. Mean loss: {mean(rows, 'loss')} and {mean(rows, 'loss_of_last')}.",
        "",
        "| run | best (step, strength) | its truth | recommended | loss | loss of the last checkpoint at strength 1 |",
        "|---|---|---|---|---|---|",
    ]
    for run, loss in rows:
        recommended = "nothing" if loss["recommended"] is None else "{}, {:g}".format(*loss["recommended"])
        best = "{}, {:g}".format(*loss["best"])
        numbers = " | ".join(f"{100 * loss[name]:.1f}" for name in ("loss", "loss_of_last"))
        lines.append(
            f"| {run['kind']}, seed {run['seed']} | {best} | {100 * loss['best_truth']:.1f} | {recommended} "
            f"| {numbers} |"
        )
    return "\n".join(lines) + "\n"


def mean(rows, name):
    return f"{100 * sum(loss[name] for _, loss in rows) / len(rows):.1f} points"


if __name__ == "__main__":
    main()

"""Simulate how often the rule of `sdxl_lora.select` finds a checkpoint and strength within 2 points of the best.

    python -m benchmarks.choosing_rule --judge runs/choosing/judge

No LoRA is trained and nothing is generated: drawings of the shapes world stand for a LoRA's images, the concept or
something else in the right colours, in known shares. Each simulated run has 4 checkpoints at 4 strengths. With the
dose, steps times strength, the concept comes, then it leaks, then known shapes are lost, each at random doses; a lost
known shape shows the concept. The model of benchmarks.choosing_judge sees the drawings, there is no CLIP; the scale,
the score, the two rounds and the recommendation are the command's own. So this measures the rule and its sample size,
but not how faithful a similarity model is to generated images; for that see benchmarks.choosing. Writes
choosing_rule.md.
"""

import argparse
import math
import random
from pathlib import Path

import torch

from benchmarks.choosing_judge import ARMS, make_judge, other_star
from examples.shapes.concepts import concept_scenes, draw_object
from examples.shapes.learning import IMAGES, spread
from examples.shapes.world import SHAPES, colour_pairs, combinations, draw, random_scene
from sdxl_lora.sampling.similarity import Similarity
from sdxl_lora.select.choice import BASE, Cell
from sdxl_lora.select.images import thumbnails
from sdxl_lora.select.scores import FINALISTS, Measured, Scale, finalists, recommend
from sdxl_lora.startup import quiet_libraries

CHECKPOINTS, STRENGTHS = (250, 500, 750, 1000), (0.6, 0.8, 1.0, 1.2)
DRAWN = 8  # drawings of each kind for each prompt, from which a run draws
MOST_PROMPTS = 8
CLOSE = 0.02
DEVICE = torch.device("cpu")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", type=Path, required=True, help="model by benchmarks.choosing_judge; made if missing")
    parser.add_argument("--runs", type=int, default=400, help="simulated runs for each number of images")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    quiet_libraries()
    if not (args.judge / "preprocessor_config.json").exists():
        make_judge(args.judge)
    bank = Bank(args.judge)
    rows = []
    for counts in ((4, 2, 0), (8, 2, 0), (8, 4, 0), (8, 8, 0), (4, 2, 8), (8, 2, 8), (8, 2, 16), (8, 4, 16)):
        losses = [one_run(bank, random.Random(f"run {number}"), *counts) for number in range(args.runs)]
        rows.append((*counts, losses))
        print(*counts, sum(loss <= CLOSE for loss, *_ in losses) / args.runs, flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "choosing_rule.md").write_text(report(rows, args.runs))


class Bank:
    """Features of drawings, by (kind of prompt, prompt, content)."""

    def __init__(self, judge):
        scenes = concept_scenes("object", IMAGES, seed=0)
        trained = {(scene.colour, scene.background) for scene in scenes}
        pairs = spread([pair for pair in colour_pairs() if pair not in trained], MOST_PROMPTS)
        known = spread(combinations(), MOST_PROMPTS)
        vision, rng = Similarity(str(judge)), random.Random(0)
        shown: list = []
        self.rows: dict[tuple, range] = {}

        def add(kind, number, what, make):
            self.rows[kind, number, what] = range(len(shown), len(shown) + DRAWN)
            shown.extend(make() for _ in range(DRAWN))

        for number, pair in enumerate(pairs):
            add("concept", number, "the concept", lambda pair=pair: star(rng, pair))
            add("concept", number, "something else", lambda pair=pair: nameless(rng, pair))
        for number, one in enumerate(known):
            add("known", number, "what was asked for", lambda one=one: draw(random_scene(rng, combination=one)))
            add("known", number, "the concept", lambda one=one: star(rng, one[1:]))
        training = [draw_object(scene) for scene in scenes]
        self.training, self.training_thumbnails = vision.embed(training, DEVICE), thumbnails(training)
        self.features, self.thumbnails = vision.embed(shown, DEVICE), thumbnails(shown)

    def measured(self, seeds, prompts, images, with_trigger, without_trigger, known):
        """Return the measurements of `prompts` of each kind, at given shares of images that show what is wanted.

        That is the concept with the trigger word, the concept without it, and known shapes as asked for.

        Args:
            seeds: of the run. As with a LoRA and equal seeds, an image is the same in every cell until the share passes
                its threshold.
        """
        rng, rows, numbers, calls_up = random.Random(seeds), [], [], []
        for number in range(prompts):
            for kind, share, usual, otherwise, calls in (
                ("concept", with_trigger, "the concept", "something else", True),
                ("concept", without_trigger, "the concept", "something else", False),
                ("known", known, "what was asked for", "the concept", False),
            ):
                for _ in range(images):
                    threshold, drawing = rng.random(), rng.randrange(DRAWN)
                    rows.append(self.rows[kind, number, usual if threshold < share else otherwise][drawing])
                    numbers.append(number + (MOST_PROMPTS if kind == "known" else 0))
                    calls_up.append(calls)
        return Measured(self.features[rows], None, self.thumbnails[rows], numbers, calls_up)


def star(rng, pair):
    return draw_object(random_scene(rng, combination=("circle", *pair)))


def nameless(rng, pair):
    """Return a base's image for "a red shape": a star of another number of arms, or a known shape, in these colours."""
    scene = random_scene(rng, combination=(rng.choice(SHAPES), *pair))
    return draw(scene) if rng.random() < 0.5 else other_star(scene, rng.choice(ARMS), rng)


def one_run(bank, rng, prompts, images, final_images):
    """Return the distances from the best of the recommendation, and of the last checkpoint at strength 1.

    Args:
        final_images: per prompt, of the finalists; 0 for one round.
    """
    comes, leaks, loses = rng.uniform(0.2, 0.7), rng.uniform(0.6, 1.6), rng.uniform(0.7, 1.6)
    steep, most = rng.uniform(6, 16), rng.uniform(0.7, 1.0)
    truth, shares, seeds = {}, {}, rng.random()
    for step in CHECKPOINTS:
        for strength in STRENGTHS:
            dose, cell = step / CHECKPOINTS[-1] * strength, Cell(strength, step)
            learned, leak = most * rises(dose, comes, steep), 0.7 * rises(dose, leaks, steep)
            known = 1 - 0.7 * rises(dose, loses, steep)
            truth[cell] = learned - leak - (1 - known)
            shares[cell] = (learned, leak, known)

    def scored(cells, images):
        scale = Scale(bank.training, bank.training_thumbnails, bank.measured(seeds, prompts, images, 0, 0, 1))
        return {cell: scale.score(cell, bank.measured(seeds, prompts, images, *shares[cell])) for cell in cells}

    scores = scored(shares, images)
    if final_images:
        scores = scored(finalists(scores), final_images)
    found, best = recommend(scores).cell, max(truth.values())
    return best - (truth[found] if found not in (None, BASE) else 0.0), best - truth[Cell(1.0, CHECKPOINTS[-1])]


def rises(dose, middle, steep):
    return 1 / (1 + math.exp(-steep * (dose - middle)))


def report(rows, runs):
    lines = [
        f"{runs} simulated runs per row, {len(CHECKPOINTS)} checkpoints x {len(STRENGTHS)} strengths; losses in "
        "points. Prompts are counted for each kind: with the trigger word, the same without it, and known shapes. "
        "Drawings of the shapes world stand in for what LoRAs draw.",
        "",
        "| prompts | images each | of the four best | images in all | within 2 points of the best | within 10 "
        "| mean loss | worst tenth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells = len(CHECKPOINTS) * len(STRENGTHS)
    for prompts, images, final_images, losses in rows:
        own = sorted(loss for loss, _ in losses)
        shares = [f"{100 * sum(loss <= limit for loss in own) / runs:.0f} %" for limit in (CLOSE, 0.1)]
        mean, worst = 100 * sum(own) / runs, 100 * own[-max(1, runs // 10)]
        total = 3 * prompts * (cells * images + FINALISTS * max(0, final_images - images))
        counts = f"| {prompts} | {images} | {final_images or 'one round'} | {total} "
        lines.append(f"{counts}| {' | '.join(shares)} | {mean:.1f} | {worst:.1f} or more |")
    last = sorted(loss for _, loss in rows[0][3])
    shares = [f"{100 * sum(loss <= limit for loss in last) / runs:.0f} %" for limit in (CLOSE, 0.1)]
    mean, worst = 100 * sum(last) / runs, 100 * last[-max(1, runs // 10)]
    lines.append(
        f"| the last checkpoint at strength 1 | | | | {' | '.join(shares)} | {mean:.1f} | {worst:.1f} or more |"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

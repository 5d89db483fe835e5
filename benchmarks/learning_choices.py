"""Compare what a LoRA learns and what the base keeps, by trained modules and by preservation: our trainer alone.

    python -m benchmarks.learning_choices --seeds 0 1 2

Every choice trains the object concept of examples/shapes on the same base with equal settings and steps, without the
text encoders, one after the other on the same cores. Choices of modules are also compared at equal seconds, by the
newest checkpoint that was ready when attention alone had ended; choices of preservation train all layers, with class
images, with output_preservation, or with neither. Seconds are of CPU, so that other work does not count. Writes
learning_choices.json and learning_choices.md into --output_dir after every training.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.learning import SCORES, make_dataset, percent, run
from benchmarks.trainers import OURS, launch, our_flags
from examples.shapes.learning import IMAGES, REPEATS, lora_quality
from examples.shapes.quality import BASE

ALL: dict[str, Any] = {"target_modules": "all-linear+conv"}
CHOICES: dict[str, tuple[bool, dict[str, Any]]] = {  # name: (has class images, flags)
    "attention": (True, {"target_modules": "attention"}),
    "attention+ff": (True, {"target_modules": "attention+ff"}),
    "all-linear": (True, {"target_modules": "all-linear"}),
    "all-linear+conv": (True, ALL),
    "all-linear+conv, neither": (False, ALL),
    "all-linear+conv, preserved in 30 %": (False, ALL | {"output_preservation": 0.3}),
    "all-linear+conv, preserved in 50 %": (False, ALL | {"output_preservation": 0.5}),
}
FIRST = "attention"  # the others get as many seconds as this


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=25, help="steps between checkpoints")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="at the start; it falls as a cosine")
    parser.add_argument("--class_pictures", type=int, default=100, help=f"beside {IMAGES} x {REPEATS} of the concept")
    parser.add_argument("--asked", type=int, default=28, help="prompts with and without the trigger word")
    parser.add_argument("--known", type=int, default=70, help="prompts for known shapes, of 140")
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    parser.add_argument("--work_dir", type=Path, default=Path("runs/learning_choices"), help="emptied at the start")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    args.clock = "cpu"
    if args.steps % args.every:
        parser.error(f"--steps {args.steps} must be a multiple of --every {args.every}")
    return args


def main(argv=None):
    args = parse(argv)
    shutil.rmtree(args.work_dir, ignore_errors=True)
    needed = {CHOICES[name][0] for name in args.choices}
    folders = {has: args.work_dir / ("with_class" if has else "without_class") for has in needed}
    data = {has: make_dataset(folder, REPEATS, args.class_pictures if has else 0) for has, folder in folders.items()}
    base = lora_quality(None, args.asked, known=args.known)
    records = []
    for seed in args.seeds:
        for of_choice in one_seed(args, data, seed):
            records += of_choice
            write_results(args, records, base)


def one_seed(args, data, seed):
    """Train every choice once; yield its records, at the end and at equal seconds."""
    budget = None
    for name in args.choices:
        folder = args.work_dir / f"{list(CHOICES).index(name)}-{seed}"
        spent = run(command(args, data, seed, name, folder), folder, args)
        budget = spent[args.steps] if name == FIRST else budget
        steps = {args.steps}
        if budget is not None and CHOICES[name][0]:
            steps |= {max((step for step in spent if spent[step] <= budget), default=args.steps)}
        records = []
        for step in sorted(steps):
            scores = lora_quality(folder / f"checkpoint-{step}", args.asked, known=args.known)
            record = {"choice": name, "seed": seed, "step": step, "seconds": round(spent[step], 1)}
            records.append(record | {"at_equal_seconds": step == min(steps)} | scores)
            print(json.dumps(records[-1]), flush=True)
        yield records


def command(args, data, seed, name, folder):
    has_class, flags = CHOICES[name]
    common = {
        "pretrained_model_name_or_path": BASE, "train_data_dir": data[has_class], "resolution": 64,
        "rank": args.rank, "learning_rate": args.learning_rate, "lr_scheduler": "cosine", "snr_gamma": 1.0,
        "train_batch_size": args.batch, "max_train_steps": args.steps, "checkpointing_steps": args.every,
        "mixed_precision": "no", "seed": seed, "output_dir": folder, "cache_dir": folder / "cache",
    }  # fmt: skip
    return launch(OURS, our_flags(**common | flags))


def write_results(args, records, base):
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(args).items() if name not in ("work_dir", "output_dir")}
    results = {"settings": settings, "base": base, "records": records}
    (args.output_dir / "learning_choices.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output_dir / "learning_choices.md").write_text(table(args, records, base))


def table(args, records, base):
    """Return means over the seeds, with the lowest and the highest in brackets, as Markdown."""
    lines = [
        f"Means over {len({record['seed'] for record in records})} seeds (lowest to highest), at step {args.steps}, "
        f"and at equal CPU seconds: {args.batch} images a step, rank {args.rank}, learning rate "
        f"{args.learning_rate:g} falling as a cosine, min-SNR 1, {IMAGES} x {REPEATS} images of the concept and, "
        f"unless the row says otherwise, {args.class_pictures} class images; {args.asked} prompts with the trigger "
        f"word, {args.asked} without, {args.known} for known shapes.",
        "",
        f"| | step | seconds | {' | '.join(SCORES.values())} |",
        "|---|---|---|---|---|---|",
        f"| base alone | | | {' | '.join(percent([base[name]]) for name in SCORES)} |",
    ]

    def row(heading, chosen):
        if not chosen:  # not yet
            return
        step, seconds = (sum(record[key] for record in chosen) / len(chosen) for key in ("step", "seconds"))
        scores = " | ".join(percent([record[name] for record in chosen]) for name in SCORES)
        lines.append(f"| {heading} | {step:.0f} | {seconds:.0f} | {scores} |")

    for name in args.choices:
        row(name, [record for record in records if record["choice"] == name and record["step"] == args.steps])
    for name in args.choices:
        chosen = [record for record in records if record["choice"] == name and record["at_equal_seconds"]]
        if FIRST in args.choices and name != FIRST and CHOICES[name][0]:
            row(f"{name}, at equal seconds", chosen)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

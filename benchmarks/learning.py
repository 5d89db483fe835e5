"""What a LoRA has learned, and what the base has kept, after equal steps, images and seconds: our trainer and a peer.

    python -m benchmarks.learning --peer train_text_to_image_lora_sdxl.py --seeds 0 1 2

Both train the object concept of examples/shapes on the same base, dataset, rank, learning rate, batch and seeds, one
after the other on the same cores, with a checkpoint every --every steps. Each checkpoint's LoRA is then drawn with and
scored. Batches are equal, so equal steps are equal images. Seconds run from the launch to the checkpoint's last file
and so include imports and caching. Writes learning.json, learning.md and learning.png into --output_dir.

The peer is diffusers' script, see benchmarks/trainers.py. Without --peer only our trainer runs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.trainers import OURS, launch, our_flags, peer_flags
from examples.shapes.learning import PICTURES, TRIGGER_WORD, lora_quality, write_pictures
from examples.shapes.quality import BASE

SCORES = ("with_trigger", "without_trigger", "known")


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="path of diffusers' train_text_to_image_lora_sdxl.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=100, help="steps between scored checkpoints")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--asked", type=int, default=28, help="prompts of each kind that a checkpoint is scored by")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/learning"), help="emptied at the start")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    shutil.rmtree(args.work_dir, ignore_errors=True)
    data = make_dataset(args.work_dir)
    trainers = {"ours": our_command} | ({"diffusers": peer_command} if args.peer else {})
    records = []
    for seed in args.seeds:
        for name, command in trainers.items():
            run_dir = args.work_dir / f"{name}-{seed}"
            seconds = run(command(args, data, run_dir, seed), run_dir, args.steps, args.every)
            for step, spent in seconds.items():
                scores = lora_quality(run_dir / f"checkpoint-{step}", args.asked)
                records.append({"trainer": name, "seed": seed, "step": step, "seconds": round(spent, 1), **scores})
                print(json.dumps(records[-1]), flush=True)
    write_results(args, records, lora_quality(None, args.asked))


def make_dataset(work_dir):
    """The object concept and as many class pictures, through our preprocess; a plain imagefolder for the peer."""
    write_pictures(work_dir, repeats=1, class_pictures=PICTURES)
    command = [
        sys.executable,
        "-m",
        "preprocess",
        "--input_dir",
        work_dir / "raw",
        "--class_images",
        work_dir / "class",
    ]
    command += ["--output_dir", work_dir / "data", "--trigger_word", TRIGGER_WORD, "--resolution", "64"]
    subprocess.run([*map(str, command), "--caption_model", "none"], check=True)
    return work_dir / "data"


def common_flags(args, data, run_dir, seed):
    return {
        "pretrained_model_name_or_path": BASE,
        "train_data_dir": data,
        "output_dir": run_dir,
        "resolution": 64,
        "rank": args.rank,
        "learning_rate": args.learning_rate,
        "lr_warmup_steps": 0,
        "train_batch_size": args.batch,
        "max_train_steps": args.steps,
        "checkpointing_steps": args.every,
        "mixed_precision": "no",
        "seed": seed,
    }


def our_command(args, data, run_dir, seed):
    return launch(OURS, our_flags(**common_flags(args, data, run_dir, seed)))


def peer_command(args, data, run_dir, seed):
    return launch(args.peer, peer_flags(**common_flags(args, data, run_dir, seed)))


def run(command, run_dir, steps, every):
    """Runs a trainer and returns {step: seconds from the launch until that checkpoint was whole}.

    Raises:
        RuntimeError: it failed, or left out a checkpoint.
    """
    run_dir.mkdir(parents=True)
    began = time.time()
    with open(run_dir / "output.log", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ)).returncode
    seconds = {}
    for step in range(every, steps + 1, every):
        files = [path for path in (run_dir / f"checkpoint-{step}").rglob("*") if path.is_file()]
        if code or not files:
            raise RuntimeError(f"{command[-1]}: exit code {code}, checkpoint {step} missing; see {run_dir}/output.log")
        seconds[step] = max(path.stat().st_mtime for path in files) - began
    return seconds


def mean(records, name):
    return sum(record[name] for record in records) / len(records)


def at_equal_seconds(records):
    """Per trainer and seed, the newest checkpoint that lay ready when the fastest trainer of that seed had ended."""
    chosen = []
    for seed in {record["seed"] for record in records}:
        mine = [record for record in records if record["seed"] == seed]
        last_step = max(record["step"] for record in mine)
        budget = min(record["seconds"] for record in mine if record["step"] == last_step)
        for trainer in {record["trainer"] for record in mine}:
            ready = [record for record in mine if record["trainer"] == trainer and record["seconds"] <= budget]
            if ready:
                chosen.append(max(ready, key=lambda record: record["step"]))
    return chosen


def write_results(args, records, base):
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "learning.json").write_text(json.dumps({"base": base, "records": records}, indent=1) + "\n")
    (args.output_dir / "learning.md").write_text(table(args, records, base))
    plot(records, base, args.output_dir / "learning.png")


def table(args, records, base):
    """Means over the seeds, as Markdown."""
    lines = [
        f"Means over {len(args.seeds)} seeds; rank {args.rank}, lr {args.learning_rate}, batch {args.batch}, "
        f"{args.asked} prompts of each kind.",
        "",
        "| | step | images | seconds | with trigger | without trigger | known shapes |",
        "|---|---|---|---|---|---|---|",
        f"| base alone | | | | {' | '.join(f'{base[name]:.2f}' for name in SCORES)} |",
    ]
    trainers = sorted({record["trainer"] for record in records}, reverse=True)

    def row(heading, chosen):
        step, seconds = mean(chosen, "step"), mean(chosen, "seconds")
        scores = " | ".join(f"{mean(chosen, name):.2f}" for name in SCORES)
        lines.append(f"| {heading} | {step:.0f} | {step * args.batch:.0f} | {seconds:.0f} | {scores} |")

    for step in sorted({record["step"] for record in records}):
        for name in trainers:
            row(name, [record for record in records if (record["trainer"], record["step"]) == (name, step)])
    if len(trainers) > 1:
        for name in trainers:
            chosen = [record for record in at_equal_seconds(records) if record["trainer"] == name]
            if chosen:
                row(f"{name}, at equal seconds", chosen)
    return "\n".join(lines) + "\n"


def plot(records, base, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), sharey=True)
    for row, across in enumerate(("step", "seconds")):
        for axis, name in zip(axes[row], SCORES, strict=True):
            axis.axhline(base[name], color="grey", linestyle=":", label="base alone")
            for colour, trainer in (("tab:blue", "ours"), ("tab:orange", "diffusers")):
                for seed in sorted({record["seed"] for record in records}):
                    mine = [record for record in records if (record["trainer"], record["seed"]) == (trainer, seed)]
                    xs, ys = [record[across] for record in mine], [record[name] for record in mine]
                    axis.plot(
                        xs,
                        ys,
                        "o-",
                        color=colour,
                        alpha=0.6,
                        label=trainer if mine and seed == records[0]["seed"] else None,
                    )
            axis.set(title=name.replace("_", " "), xlabel=across, ylim=(-0.03, 1.03))
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

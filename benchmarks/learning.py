"""Compare what a LoRA learns and what the base keeps at equal steps, images and seconds: our trainer and a peer.

    python -m benchmarks.learning --peer train_text_to_image_lora_sdxl.py --clock cpu

All train the object concept of examples/shapes on the same base, dataset, rank, learning rate, schedule, loss weights,
batch and seeds, both text encoders too, one after the other on the same cores. "ours" trains as the peer does:
attention alone, with the same initialisation. "ours, defaults" uses our own default layers and initialisation, "ours,
all layers" all linear layers and convolutions, which the peer has no flag for.

Each trainer is scored at its end, and at the newest of its checkpoints (one every --every steps) that was ready when
the first trainer of that seed had ended, which is the peer if one is given: its schedule has ended then, ours perhaps
not. Batches are equal, so equal steps are equal images. Seconds run from the launch to the checkpoint's last file and
so include imports and caching, which every run repeats; with --clock cpu they are scaled to the run's CPU time, for
machines that other work shares. Writes learning.json, learning.md and learning.png into --output_dir after every
training. Results in learning.json are kept, so the same command resumes where it was stopped.

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
from benchmarks.usage import cpu_of_children
from examples.shapes.learning import IMAGES, REPEATS, TRIGGER_WORD, lora_quality, write_images
from examples.shapes.quality import BASE

SCORES = {
    "with_trigger": "the concept, with the trigger word",
    "without_trigger": "the concept, without it",
    "known": "known shapes drawn right",
}
PEER = "diffusers"
OWN: dict[str, dict] = {  # our trainers, by their differences from the peer
    "ours": {"target_modules": "attention", "init_lora_weights": "gaussian"},
    "ours, defaults": {"target_modules": "auto"},
    "ours, all layers": {"target_modules": "all-linear+conv", "init_lora_weights": "gaussian"},
}
COLOURS = {PEER: "tab:orange", "ours": "tab:blue", "ours, defaults": "tab:purple", "ours, all layers": "tab:green"}


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="path of diffusers' train_text_to_image_lora_sdxl.py")
    parser.add_argument("--trainers", nargs="+", choices=[PEER, *OWN], default=[PEER, *OWN], help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=25, help="steps between checkpoints")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="at the start; it falls as a cosine")
    parser.add_argument("--snr_gamma", type=float, default=1.0)
    parser.add_argument("--class_pictures", type=int, default=100, help=f"beside {IMAGES} x {REPEATS} of the concept")
    parser.add_argument("--asked", type=int, default=28, help="prompts with and without the trigger word")
    parser.add_argument("--known", type=int, default=70, help="prompts for known shapes, of 140")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: other work does not count")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/learning"))
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if args.steps % args.every:
        parser.error(f"--steps {args.steps} must be a multiple of --every {args.every}")
    return args


def main(argv=None):
    args = parse(argv)
    results = former_results(args)
    data = args.work_dir / "data"
    if not (data / "metadata.jsonl").exists():
        make_dataset(args.work_dir, REPEATS, args.class_pictures)
    results.setdefault("base", lora_quality(None, args.asked, known=args.known))
    for seed in args.seeds:
        one_seed(args, data, seed, results)


def former_results(args):
    """Return the results in learning.json; without that file, the settings and no records."""
    path = args.output_dir / "learning.json"
    results = json.loads(path.read_text()) if path.exists() else {"settings": settings(args), "records": []}
    if results["settings"] != settings(args):
        sys.exit(f"{path} was measured with other settings: move it away, or use the same settings")
    return results


def settings(args):
    places = ("peer", "trainers", "seeds", "work_dir", "output_dir")
    return {name: value for name, value in vars(args).items() if name not in places}


def one_seed(args, data, seed, results):
    """Train with every trainer once and score the checkpoints to compare, unless there are results already."""
    commands = {PEER: peer_command(args, data, seed)} if args.peer else {}
    commands |= {name: our_command(args, data, seed, name) for name in OWN}
    commands = {name: command for name, command in commands.items() if name in args.trainers}
    budget = None
    for name, command in commands.items():
        there = [one for one in results["records"] if (one["trainer"], one["seed"]) == (name, seed)]
        if not there:
            spent = run(command, run_dir(args, name, seed), args)
            in_time = max((step for step in spent if spent[step] <= (budget or spent[args.steps])), default=None)
            for step in sorted({args.steps, in_time} - {None}):
                scores = lora_quality(run_dir(args, name, seed) / f"checkpoint-{step}", args.asked, known=args.known)
                record = {"trainer": name, "seed": seed, "step": step, "seconds": round(spent[step], 1)}
                there.append(record | {"at_equal_seconds": step == in_time} | scores)
                print(json.dumps(there[-1]), flush=True)
            results["records"] += there
            write_results(args, results)
        budget = budget or there[-1]["seconds"]


def make_dataset(work_dir, repeats=1, class_images=IMAGES):
    """Prepare images of the object concept and of the class with preprocess; a plain imagefolder for the peer.

    Repeats are rows of metadata.jsonl, so both trainers see the same mixture. With 0 class_images there are none.
    """
    write_images(work_dir, repeats=repeats, class_images=class_images or 1)
    flags = {"input_dir": work_dir / "raw", "output_dir": work_dir / "data"}
    flags |= {"class_images": work_dir / "class"} if class_images else {}
    flags |= {"trigger_word": TRIGGER_WORD, "resolution": 64, "caption_model": "none"}
    command = [sys.executable, "-m", "preprocess", *(f"--{name}={value}" for name, value in flags.items())]
    subprocess.run(command, check=True)
    return work_dir / "data"


def run_dir(args, name, seed):
    return args.work_dir / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def common_flags(args, data, seed):
    return {
        "pretrained_model_name_or_path": BASE,
        "train_data_dir": data,
        "resolution": 64,
        "train_text_encoder": True,
        "rank": args.rank,
        "learning_rate": args.learning_rate,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0,
        "snr_gamma": args.snr_gamma,
        "train_batch_size": args.batch,
        "max_train_steps": args.steps,
        "checkpointing_steps": args.every,
        "mixed_precision": "no",
        "seed": seed,
    }


def our_command(args, data, seed, name):
    folder = run_dir(args, name, seed)
    own = {"output_dir": folder, "cache_dir": folder / "cache"} | OWN[name]
    return launch(OURS, our_flags(**common_flags(args, data, seed) | own))


def peer_command(args, data, seed):
    flags = common_flags(args, data, seed) | {"output_dir": run_dir(args, PEER, seed)}
    return launch(args.peer, peer_flags(**flags))


def run(command, run_dir, args):
    """Run a trainer and return {step: seconds from the launch until that checkpoint was complete}.

    Raises:
        RuntimeError: it failed, or left out a checkpoint.
    """
    shutil.rmtree(run_dir, ignore_errors=True)  # left by a stopped run
    run_dir.mkdir(parents=True)
    began, cpu_began = time.time(), cpu_of_children()
    with open(run_dir / "output.log", "w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ)).returncode
    ended = (run_dir / "output.log").stat().st_mtime  # this process may have been paused since
    scale = (cpu_of_children() - cpu_began) / (ended - began) if args.clock == "cpu" else 1.0
    seconds = {}
    for step in range(args.every, args.steps + 1, args.every):
        files = [path for path in (run_dir / f"checkpoint-{step}").rglob("*") if path.is_file()]
        if code or not files:
            raise RuntimeError(f"{run_dir.name}: exit code {code}, checkpoint {step} missing; see {run_dir}/output.log")
        seconds[step] = (max(path.stat().st_mtime for path in files) - began) * scale
    return seconds


def write_results(args, results):
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "learning.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output_dir / "learning.md").write_text(table(args, results["records"], results["base"]))
    plot(args, results["records"], results["base"], args.output_dir / "learning.png")


def table(args, records, base):
    """Return means over the seeds, with the lowest and the highest in brackets, as Markdown."""
    lines = [
        f"Means over the seeds (lowest to highest): {args.steps} steps of {args.batch} images, rank "
        f"{args.rank}, learning rate {args.learning_rate:g} falling as a cosine, min-SNR {args.snr_gamma:g}, both text "
        f"encoders trained, {IMAGES} x {REPEATS} images of the concept and {args.class_pictures} class images; "
        f"{args.asked} prompts with the trigger word, {args.asked} without, {args.known} for known shapes."
        + (" Seconds are CPU time." if args.clock == "cpu" else ""),
        f'"ours" and "{PEER}" train attention, which is all the peer can train; "ours, defaults" attention and '
        'feed-forward layers, "ours, all layers" all linear layers and convolutions.',
        "",
        f"| | seeds | step | images | seconds | {' | '.join(SCORES.values())} |",
        "|---|---|---|---|---|---|---|---|",
        f"| base alone | | | | | {' | '.join(percent([base[name]]) for name in SCORES)} |",
    ]
    for at_equal_seconds in (False, True):
        for name in COLOURS:
            mine = [record for record in records if record["trainer"] == name]
            if at_equal_seconds:
                chosen, heading = [one for one in mine if one["at_equal_seconds"]], f"{name}, at equal seconds"
            else:
                chosen, heading = [one for one in mine if one["step"] == args.steps], name
            if chosen:
                lines.append(row(heading, chosen, args.batch))
    notes = [f"{one['trainer']}, seed {one['seed']}: {one['note']}" for one in records if "note" in one]
    lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def row(heading, chosen, batch):
    step, seconds = (sum(record[name] for record in chosen) / len(chosen) for name in ("step", "seconds"))
    scores = " | ".join(percent([record[name] for record in chosen]) for name in SCORES)
    return f"| {heading} | {len(chosen)} | {step:.0f} | {batch * step:.0f} | {seconds:.0f} | {scores} |"


def percent(shares):
    """Return the mean of some shares, with their range if they differ."""
    middle = f"{100 * sum(shares) / len(shares):.0f} %"
    if min(shares) == max(shares):
        return middle
    return f"{middle} ({100 * min(shares):.0f} to {100 * max(shares):.0f})"


def plot(args, records, base, path):
    """Plot trainings as dots and means at the end as lines from the base: over steps above, over seconds below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7), sharey=True)
    units = {"step": "steps", "seconds": "CPU seconds" if args.clock == "cpu" else "seconds"}
    for row, (across, xlabel) in enumerate(units.items()):
        for axis, (score, title) in zip(axes[row], SCORES.items(), strict=True):
            axis.axhline(100 * base[score], color="grey", linestyle=":", label="base alone")
            for trainer, colour in COLOURS.items():
                mine = [record for record in records if record["trainer"] == trainer]
                points = [(record[across], 100 * record[score]) for record in mine]
                if points:
                    axis.plot(*zip(*points, strict=True), ".", color=colour, alpha=0.4)
                    ends = [record for record in mine if record["step"] == args.steps]
                    x, y = (sum(record[key] for record in ends) / len(ends) for key in (across, score))
                    axis.plot([0, x], [100 * base[score], 100 * y], "o-", color=colour, linewidth=2.5, label=trainer)
            axis.set(title=title if row == 0 else None, xlabel=xlabel, ylim=(-3, 103))
            axis.set_xlim(left=0)
        axes[row][0].set_ylabel("% of the images")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=4)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    main()

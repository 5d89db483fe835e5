"""Measure seconds per step, memory and start of our trainer and a peer, in turn on the same model, data and precision.

    python -m benchmarks.train_speed --peer train_text_to_image_lora_sdxl.py --size toy
    python -m benchmarks.train_speed --peer ... --size sdxl --precision bf16 --variant "compiled=--compile"

The seed is the same too. Each round runs every trainer once, so that a slow minute of the machine affects all of them.
Times are those of the TensorBoard lines that each trainer writes per step, memory is what the system (or torch, on a
GPU) counted for the process: nothing is added to a trainer's loop. See benchmarks/sizes.py for the models,
benchmarks/trainers.py for the peer. --growth also measures ours over pixels, batches, images to cache and processes.

Writes <name>.json, <name>.md and <name>.png into --output_dir.
"""

import argparse
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.hardware import measured_peaks, step_bytes, step_flops
from benchmarks.sizes import RESOLUTION, UNETS, save_base, write_images
from benchmarks.train_speed_report import plot, summaries, table
from benchmarks.trainers import OURS, launch, our_flags, peer_flags

LOSS_TAGS = ("loss", "train_loss")  # ours, diffusers'


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="path of diffusers' train_text_to_image_lora_sdxl.py")
    parser.add_argument("--peer_variant", action="append", default=[], help="NAME=FLAGS: the peer once more")
    parser.add_argument("--size", choices=sorted(RESOLUTION), default="toy")
    parser.add_argument("--variant", action="append", default=[], help='NAME=FLAGS: ours once more, "fast=--compile"')
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--resolution", type=int, help="default: 256 for toy, 1024 for sdxl")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="timed steps after the warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory_limit_gib", type=float, help="torch may reserve no more than this on the GPU")
    parser.add_argument("--growth", action="store_true", help="also ours over pixels, batch, images and processes")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/train_speed"))
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="train_speed")
    args = parser.parse_args(argv)
    args.resolution = args.resolution or RESOLUTION[args.size]
    if args.peer and not args.peer.is_file():
        parser.error(f"--peer: {args.peer} is not a file")
    return args


def main(argv=None) -> None:
    """Run the benchmark, writing results as they come. A failed training is listed with its reason; others go on."""
    args = parse(argv)
    if args.peer is None:
        print("left out: diffusers' script, since --peer gives no path", flush=True)
    base = save_base(args.size, args.work_dir)
    data = write_images(args.work_dir, args.pictures, args.resolution)
    trainers = trainers_of(args)
    command = "python -m benchmarks.train_speed " + shlex.join(sys.argv[1:] if argv is None else argv)
    result: dict[str, Any] = {"command": command, "machine": machine(args), "peak": {}, "trainers": {}}
    result |= {"failures": {}, "records": []}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for number in range(args.rounds):
        measured = measured_peaks(args.precision, args.threads)
        result["peak"] = {name: max(now, result["peak"].get(name, 0)) for name, now in measured.items()}
        result["floors"] = floors(args, result["peak"])
        for name, (script, flags) in trainers.items():
            try:
                record = run(args, script, flags, base, data)
            except RuntimeError as error:
                result["failures"][name] = str(error).strip().splitlines()[-1].replace("|", "/")
                print(f"failed: {name}: {error}", flush=True)
            else:
                result["records"].append({"trainer": name, "round": number, **record})
                print(json.dumps({k: v for k, v in result["records"][-1].items() if k != "seconds"}), flush=True)
            result["trainers"] = summaries(trainers, result["records"])
            write(args, result)
    if args.growth:
        result["growth"] = growth(args, base)
        write(args, result)
    print(table(args, result), flush=True)
    if result["failures"]:
        sys.exit(f"failed: {', '.join(result['failures'])}")


def trainers_of(args) -> dict[str, tuple[Path, list[str]]]:
    """Return the script and further flags of each training, by its name."""
    trainers = {"ours": (OURS, [])} | ({"diffusers": (args.peer, [])} if args.peer else {})
    variants = [(OURS, variant) for variant in args.variant]
    variants += [(args.peer, variant) for variant in args.peer_variant if args.peer]
    for script, variant in variants:
        name, _, flags = variant.partition("=")
        trainers[name] = (script, shlex.split(flags))
    return trainers


def write(args, result: dict) -> None:
    path = args.output_dir / args.name
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(args, result))
    if result["trainers"]:
        plot(result, path.with_suffix(".png"))


def machine(args) -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    load = psutil.getloadavg()[0]
    return f"{platform.machine()}, {args.threads} of {os.cpu_count()} cores, torch {torch.__version__}, load {load:.1f}"


def floors(args, peak: dict[str, float]) -> dict[str, float]:
    """Return the model FLOPs of a step, and the least seconds that a step can take on this machine."""
    flops = step_flops(UNETS[args.size], args.rank, args.batch, args.resolution, remember_in=args.work_dir)
    moved = step_bytes(flops, args.precision)
    return {
        **flops,
        "bytes": moved,
        "flop_floor_seconds": flops["step"] / peak["flops_per_second"],
        "byte_floor_seconds": moved / peak["bytes_per_second"],
    }


def run(args, script, flags, base, data, batch=None, resolution=None, processes=1) -> dict:
    """Train warmup + steps once and return the measurements."""
    run_dir = args.work_dir / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    steps = args.warmup + args.steps
    common = {
        "pretrained_model_name_or_path": base,
        "train_data_dir": data,
        "output_dir": run_dir,
        "resolution": resolution or args.resolution,
        "center_crop": True,
        "rank": args.rank,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 0,
        "train_batch_size": batch or args.batch,
        "max_train_steps": steps,
        "checkpointing_steps": 10**6,
        "mixed_precision": args.precision,
        "seed": 0,
    }
    words = [*(our_flags(**common) if script == OURS else peer_flags(**common)), *flags]
    took = run_dir / "took.json"
    if processes == 1:
        command = [sys.executable, "-m", "benchmarks.observed", str(took), str(script), *words]
    else:
        observed = Path(__file__).with_name("observed.py")
        command = launch(observed, [str(took), str(script), *words], args.precision, processes)
    threads = str(max(1, args.threads // processes))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if processes > 1 and not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"  # else accelerate lets each of them train alone
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    if args.memory_limit_gib:
        environment["CUDA_LIMIT_GIB"] = str(args.memory_limit_gib)
    began = time.time()
    with open(run_dir / "output.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        watch = Watch(process.pid)
        code = process.wait()
    times = step_times(run_dir)
    if code or len(times) < steps:
        tail = (run_dir / "output.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{script} ended with {code} after {len(times)} of {steps} steps:\n{tail}")
    seconds = [later - earlier for earlier, later in itertools.pairwise(times)][args.warmup - 1 :]
    cpu = (watch.cpu_at(times[-1]) - watch.cpu_at(times[args.warmup - 1])) / len(seconds)
    return {
        "seconds": [round(second, 4) for second in seconds],
        "cpu_seconds_per_step": cpu,
        "start_seconds": times[0] - began - median(seconds),
        "wall_seconds": times[-1] - began,
        "cache_seconds": cache_seconds(run_dir),
        "peak_gib": watch.peak_until(times[-1]),
        **json.loads(took.read_text()),
    }


class Watch:
    """Peak memory and CPU time of a process, as the system counts them, sampled over time."""

    def __init__(self, pid: int):
        self.process = psutil.Process(pid)
        self.samples: list = []
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while True:
            try:
                status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
                times = self.process.cpu_times()
            except (OSError, psutil.Error):
                return
            if "VmHWM" not in status:
                return
            peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
            self.samples.append((time.time(), peak, times.user + times.system))
            time.sleep(0.02)

    def peak_until(self, moment: float) -> float:
        return max(peak for when, peak, _ in self.samples if when <= moment)

    def cpu_at(self, moment: float) -> float:
        return min(self.samples, key=lambda sample: abs(sample[0] - moment))[2]


def step_times(run_dir: Path) -> list[float]:
    """Return the time at which each step was logged, from the run's TensorBoard file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for file in run_dir.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in LOSS_TAGS:
            if tag in events.Tags()["scalars"]:
                return [event.wall_time for event in events.Scalars(tag)]
    return []


def cache_seconds(run_dir: Path) -> float:
    """Return the seconds to fill our caches; 0 for a peer."""
    file = run_dir / "events.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return next((line["seconds"] for line in lines if line["event"] == "cached"), 0.0)


def growth(args, base: Path) -> dict[str, list]:
    """Measure ours: s/step against pixels, batch and processes; seconds of the cache against images."""

    def seconds(**settings) -> float:
        resolution = settings.get("resolution", args.resolution)
        return median(run(args, OURS, [], base, write_images(args.work_dir, 16, resolution), **settings)["seconds"])

    def caching(count: int) -> list[float]:
        """Return seconds of the first run and of a second one that finds everything in the cache."""
        cache = args.work_dir / f"cache-{count}"
        shutil.rmtree(cache, ignore_errors=True)
        data = write_images(args.work_dir, count, 64)
        records = [run(args, OURS, ["--cache_dir", str(cache)], base, data, resolution=64) for _ in range(2)]
        return [count, *(record["cache_seconds"] for record in records), *(r["peak_gib"] for r in records)]

    sides = [args.resolution * eighths // 8 for eighths in (4, 6, 8, 10)]
    return {
        "side, seconds_per_step": [[side, seconds(resolution=side)] for side in sides],
        "batch, seconds_per_step": [[batch, seconds(batch=batch)] for batch in (1, 2, 4)],
        "processes, seconds_per_step": [[count, seconds(processes=count)] for count in (1, 2)],
        "pictures, cache_seconds, again, peak_gib, again": [caching(count) for count in (16, 256, 4096)],
    }


if __name__ == "__main__":
    main()

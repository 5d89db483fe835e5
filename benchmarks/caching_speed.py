"""Measure images per second when filling the cache of latents: one and four at once in the VAE, beside decoding alone.

    python -m benchmarks.caching_speed --size toy
    python -m benchmarks.caching_speed --size sdxl --precisions fp32 bf16 --workers 0 4 --pictures 256

Each round fills an empty cache in every way, in turn, in one process, with the trainer's own LatentCache: read, decode,
encode, write. The first round does not count. Images are of one size, weights are random. Worker processes start again
each time, which counts: give many images. On busy cores look at the CPU seconds, which exclude those of worker
processes. Writes <name>.json and <name>.md into --output_dir.
"""

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch
from diffusers import AutoencoderKL

from benchmarks.sizes import RESOLUTION, VAES, write_images
from sdxl_lora.cache.latents import LatentCache
from sdxl_lora.cache.records import Workers
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.models.vae import PRECISIONS, VaeEncoder

REFERENCE = "1 at once, fp32"


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(RESOLUTION), default="toy")
    parser.add_argument("--resolution", type=int, help="default: 256 for toy, 1024 for sdxl")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--precisions", nargs="+", choices=sorted(PRECISIONS), default=["fp32"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="processes that decode; 0 is a thread")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work_dir", type=Path, default=Path("runs/train_speed"))
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="caching_speed")
    args = parser.parse_args(argv)
    args.resolution = args.resolution or RESOLUTION[args.size]
    return args


def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = psutil.getloadavg()[0]
    seconds: dict[str, list[float]] = {}
    cpu_seconds: dict[str, list[float]] = {}
    for number in range(1 + args.rounds):
        for name, fill in ways(args, device).items():
            began, worked = time.perf_counter(), time.process_time()
            fill()
            spent, worked = time.perf_counter() - began, time.process_time() - worked
            print(f"{name}: {args.pictures / spent:.2f} images/s", flush=True)
            if number:
                seconds.setdefault(name, []).append(spent)
                cpu_seconds.setdefault(name, []).append(worked)
    result = {
        "command": "python -m benchmarks.caching_speed " + shlex.join(sys.argv[1:] if argv is None else argv),
        "machine": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {args.threads} threads, load {load:.1f} before",
        "torch": torch.__version__,
        "pictures_per_second": {name: args.pictures / median(of_way) for name, of_way in seconds.items()},
        "cpu_seconds_per_picture": {name: median(of_way) / args.pictures for name, of_way in cpu_seconds.items()},
        "seconds": seconds,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / args.name
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(args, result))
    print(table(args, result))


def ways(args, device: torch.device) -> dict[str, Callable[[], None]]:
    """Return functions that fill an empty cache, and some that only decode its images, by name."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAES[args.size]).requires_grad_(False).eval().to(device)
    images = ImageDataset(open_dataset(str(write_images(args.work_dir, args.pictures, args.resolution))))

    def fill(batch: int, encode: VaeEncoder, workers: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            LatentCache(Path(folder), images, "key", batch_size=batch).fill(encode, (False,), workers, Workers())

    def decode(workers: int) -> None:
        items = [(index, False) for index in range(len(images))]
        assert all(isinstance(one, dict) for one in LatentCache(Path(), images, "key")._decoded(items, workers))

    found: dict[str, Callable[[], None]] = {}
    for workers in args.workers:
        by = f", {workers} processes decode" if workers else ""
        for precision in args.precisions:
            encode = VaeEncoder(vae, PRECISIONS[precision])
            for batch in args.batches:
                found[f"{batch} at once, {precision}{by}"] = partial(fill, batch, encode, workers)
        found[f"decoding alone{by}"] = partial(decode, workers)
    return found


def table(args, result: dict) -> str:
    rates, cpu = result["pictures_per_second"], result["cpu_seconds_per_picture"]
    first = rates.get(REFERENCE, next(iter(rates.values())))
    lines = [
        f"{args.size}, {args.pictures} images of {args.resolution} px, median of {args.rounds} rounds. "
        f"{result['machine']}, torch {result['torch']}.",
        "",
        "| | images/s | relative to the first | CPU s/image |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {rate:.2f} | {rate / first:.2f} | {cpu[name]:.3f} |" for name, rate in rates.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

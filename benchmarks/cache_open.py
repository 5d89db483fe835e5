"""Measure the time of a start with everything cached and its memory, against the number of images.

    python -m benchmarks.cache_open --output benchmarks/results/cache_open.json

A start does what a training does, in a process of its own: open the images, identify the encoders by their files, check
that each record is whole, read the first. Images are of 64 px, on the toy base of sizes.py: a start reads only the
headers of records, so their size does not matter. The first start fills the cache; of the later ones the fastest
counts. On busy cores look at cpu_seconds.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import torch

from benchmarks.sizes import save_base, write_images
from sdxl_lora.cache.fill import fill_caches
from sdxl_lora.config.fields import from_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.io.memo import FileMemo
from sdxl_lora.models.loading import base_of
from sdxl_lora.training.data import open_images

REPEATS = 3  # starts with everything cached


def held_mb() -> tuple[float, float]:
    """Return the present and the peak memory of this process in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    now, most = (int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def start(base: Path, data: Path, cache: Path) -> dict[str, float]:
    """Run the part of `prepare_data` before the steps are planned, and return its time and memory."""
    config = from_flat(
        TrainConfig,
        {
            "output_dir": "run",
            "pretrained_model_name_or_path": str(base),
            "train_data_dir": str(data),
            "resolution": 64,
        },
    )
    before, began, worked = held_mb(), time.perf_counter(), time.process_time()
    memo = FileMemo(cache / "memo.json")
    images = open_images(config, memo)
    latents, texts = fill_caches(
        cache, base_of(config.model), images, [""], (False,), torch.device("cpu"), torch.float32, memo=memo
    )
    memo.save()
    assert latents.read(0) and texts.read(images.examples[0].caption)
    took = time.perf_counter() - began, time.process_time() - worked
    return {
        "pictures": len(images),
        "seconds": round(took[0], 3),
        "cpu_seconds": round(took[1], 3),
        **{
            name: round(now - then, 1)
            for name, now, then in zip(("kept_mb", "peak_mb"), held_mb(), before, strict=True)
        },
    }


def alone(function, *arguments):
    """Return the result of a function run in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    all_first: list[dict] = []
    all_again: list[dict] = []
    result = {
        "command": f"python -m benchmarks.cache_open --pictures {' '.join(map(str, args.pictures))}",
        "cores": os.cpu_count(),
        "load": round(psutil.getloadavg()[0], 1),
        "first": all_first,
        "again": all_again,
    }
    with tempfile.TemporaryDirectory() as folder:
        base = save_base("toy", Path(folder))
        for count in args.pictures:
            data = write_images(Path(folder), count, 64)
            arguments = base, data, Path(folder) / f"cache-{count}"
            first, *again = (alone(start, *arguments) for _ in range(1 + REPEATS))
            all_first.append(first)
            all_again.append(min(again, key=lambda record: record["seconds"]))
            print(first, *again, sep="\n", flush=True)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Measure images per second of crop + encode against a plain PIL loop, and peak memory at two sizes of dataset.

    python -m benchmarks.preprocess_speed --pictures 60 --memory 100 5000
    python -m benchmarks.preprocess_speed --pictures 0 --memory 100 1000 5000 --output FILE.json
    python -m benchmarks.preprocess_speed --pictures 24 --memory --kohya ../sd-scripts --kohya_python PYTHON

The images are JPEGs of 12 megapixels, mirrored and turned from photographs of scikit-image, prepared at 1024 px; for
memory they are of 640x480 px, prepared at 256 px. No captioner runs. The plain loop does the least that gives the same
sizes (open, EXIF, RGB, resize, crop, save), without hashes, measures, thumbnails, checks, or resuming.

Runs take turns; of several rounds the one with the least CPU time counts, as other processes can only add to it. With
--kohya, a checkout of sd-scripts, its bucketing script and its crop run in turn with ours on the same images, with the
tiny VAE of examples/tiny_sdxl.py; see kohya_buckets.py.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from PIL import Image, ImageOps
from skimage import data

from benchmarks.kohya_buckets import KOHYA_CROP, OUR_CROP, crop_alone, kohya_script, our_latents, seconds_of_imports
from benchmarks.usage import cpu_of_children
from sdxl_lora.data.buckets import bucket_sizes, nearest_bucket

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEGs of this size; no two have the same bytes."""
    folder.mkdir(parents=True)
    for index in range(count):
        image = Image.fromarray(getattr(data, PHOTOGRAPHS[index % 4])()).convert("RGB")
        image = image.transpose(Image.Transpose(index // 4 % 5))
        width, height = size if index % 3 else size[::-1]
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        image.putpixel((0, 0), (index % 256, index // 256 % 256, 0))
        image.save(folder / f"{index:05d}.jpg", quality=92)


def plain_loop(folder: Path, out: Path, resolution: int, compress_level: int) -> dict:
    """Return seconds of a loop as a person would write it in a notebook."""
    out.mkdir(parents=True)
    buckets = bucket_sizes(resolution)
    start, cpu_start = time.perf_counter(), time.process_time()
    for path in sorted(folder.iterdir()):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        image = ImageOps.fit(image, nearest_bucket(image.size, buckets), Image.Resampling.LANCZOS)
        image.save(out / f"{path.stem}.png", compress_level=compress_level)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu_start, 2),
    }


def measured_command(folder: Path, out: Path, resolution: int, workers: int) -> dict:
    """Return seconds of the whole command, imports included, and the peak MB of itself and its largest worker."""
    code = (
        "import re, resource, sys; from preprocess.__main__ import main; status = main(sys.argv[1:]);"
        "own = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read());"  # ru_maxrss counts the parent's too
        "worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
        "print('PEAK', int(own[1]) // 1024, worker // 1024); sys.exit(status)"
    )
    flags = ["--input_dir", folder, "--output_dir", out, "--resolution", resolution, "--num_workers", workers]
    command = [sys.executable, "-c", code, *map(str, flags), "--caption_model", "none", "--fallback_caption", "x"]
    start, cpu_start = time.perf_counter(), cpu_of_children()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, cpu = time.perf_counter() - start, cpu_of_children() - cpu_start
    own, worker = map(int, result.stdout.split("PEAK ")[1].split())
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_mb": own,
        "largest_worker_mb": worker if workers else None,
    }


def per_image(run: dict, images: int) -> dict:
    """Return images per second by the clock, and milliseconds of CPU per image, which other processes disturb less."""
    return {
        "pictures_per_second": round(images / run["seconds"], 2),
        "cpu_ms_per_picture": round(1000 * run["cpu_seconds"] / images),
    }


def own_runs(images: Path, work: Path) -> dict[str, Callable[[int], dict]]:
    """Return the functions to time by name; each takes the number of the round."""
    return {
        "plain loop, PNG level 6": lambda i: plain_loop(images, work / f"plain6-{i}", 1024, 6),
        "plain loop, PNG level 1": lambda i: plain_loop(images, work / f"plain1-{i}", 1024, 1),
        "preprocess, 0 workers": lambda i: measured_command(images, work / f"ours0-{i}", 1024, 0),
        "preprocess, 1 workers": lambda i: measured_command(images, work / f"ours1-{i}", 1024, 1),
        "preprocess, 2 workers": lambda i: measured_command(images, work / f"ours2-{i}", 1024, 2),
        "preprocess again, nothing new": lambda i: measured_command(images, work / f"ours2-{i}", 1024, 2),
    }


def runs_beside_kohya(images: Path, work: Path, home: Path, python: str) -> dict[str, Callable[[int], dict]]:
    """Return functions of theirs and ours that do the same work; `preprocess` must have run before."""
    vae = work / "tiny" / "vae"
    subprocess.run([sys.executable, "-m", "examples.tiny_sdxl", vae.parent], check=True, capture_output=True)
    script = partial(kohya_script, images, vae, python, home)
    return {
        "kohya: load, resize, crop": lambda i: crop_alone(images, KOHYA_CROP, python, home),
        "ours: load, resize, crop": lambda i: crop_alone(images, OUR_CROP),
        "kohya: bucketing script, 0 workers": lambda i: script(0, work / f"kohya0-{i}"),
        "kohya: bucketing script, 2 workers": lambda i: script(2, work / f"kohya2-{i}"),
        "ours: latents of the prepared dataset": lambda i: our_latents(work / f"ours0-{i}", vae, work / f"latents{i}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory", type=int, nargs="*", default=[100, 5000])
    parser.add_argument("--kohya", type=Path, help="a checkout of kohya-ss/sd-scripts")
    parser.add_argument("--kohya_python", default=sys.executable, help="a Python that has what it imports")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/preprocess_speed.json"))
    options = parser.parse_args()
    result: dict = {
        "command": "python -m benchmarks.preprocess_speed " + " ".join(sys.argv[1:]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {psutil.getloadavg()[0]:.1f} at the start",
        "speed": {},
        "memory": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_images(work / "large", options.pictures, (4000, 3000))
        todo = own_runs(work / "large", work) if options.pictures else {}
        if options.kohya:
            python = str(Path(options.kohya_python).absolute())  # not resolved: a venv's Python is a link
            todo |= runs_beside_kohya(work / "large", work, options.kohya, python)
        runs: dict[str, list[dict]] = {name: [] for name in todo}
        for number in range(options.rounds):
            for name, timed in todo.items():
                runs[name].append(timed(number))
        for name, rounds in runs.items():
            best = min(rounds, key=lambda run: run["cpu_seconds"])
            result["speed"][name] = per_image(best, options.pictures)
        if options.kohya:
            result["kohya"] = compared({name: rounds[0] for name, rounds in runs.items()})
            result["kohya"]["cpu_seconds_of_imports"] = seconds_of_imports(python, options.kohya)
        save(result, options.output)
        for count in options.memory:
            write_images(work / f"small{count}", count, (640, 480))
            result["memory"][str(count)] = measured_command(work / f"small{count}", work / f"out{count}", 256, 2)
            save(result, options.output)
    print(options.output.read_text())


def save(result: dict, path: Path) -> None:
    """Write the results, also between the long parts: the last one takes minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"load_at_the_end": round(psutil.getloadavg()[0], 1)}
    path.write_text(json.dumps(result | facts, indent=1) + "\n", encoding="utf-8")


def compared(runs: dict[str, dict]) -> dict:
    """Compare the sizes of both crops, and return what the script left behind."""
    theirs, ours = (runs[f"{who}: load, resize, crop"]["sizes"] for who in ("kohya", "ours"))
    script = runs["kohya: bucketing script, 0 workers"]
    assert script["sizes"] == theirs
    return {
        "pictures_of_equal_size": sum(theirs[name] == ours[name] for name in ours),
        "sizes": sorted({f"{width}x{height}" for width, height in theirs.values()}),
        "latent_files_of_the_script": script["latent_files"],
    }


if __name__ == "__main__":
    main()

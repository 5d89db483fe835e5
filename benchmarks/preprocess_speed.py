"""Pictures per second of crop + encode against a plain PIL loop, and peak memory at two sizes of dataset.

    python -m benchmarks.preprocess_speed --pictures 60 --memory 100 5000

The pictures are JPEGs of 12 megapixels, mirrored and turned from photographs of scikit-image, prepared at 1024 px;
for memory they are of 640x480 px, prepared at 256 px. No captioner runs. The plain loop does the least that gives the
same sizes (open, EXIF, RGB, resize, crop, save), without hashes, measures, thumbnails, checks, or a way to go on.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageOps
from skimage import data

from sdxl_lora.buckets import bucket_sizes, nearest_bucket

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs of this size; no two have the same bytes."""
    folder.mkdir(parents=True)
    for index in range(count):
        image = Image.fromarray(getattr(data, PHOTOGRAPHS[index % 4])()).convert("RGB")
        image = image.transpose(Image.Transpose(index // 4 % 5))
        width, height = size if index % 3 else size[::-1]
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        image.putpixel((0, 0), (index % 256, index // 256 % 256, 0))
        image.save(folder / f"{index:05d}.jpg", quality=92)


def plain_loop(folder: Path, out: Path, resolution: int, compress_level: int) -> dict:
    """Seconds of a loop as a person would write it in a notebook."""
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
    """Seconds of the whole command, imports included, and its peak memory in MB: its own, and of its largest worker."""
    code = (
        "import resource, sys; from preprocess.__main__ import main; status = main(sys.argv[1:]);"
        "peaks = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN));"
        "print('PEAK', *(peak.ru_maxrss // 1024 for peak in peaks)); sys.exit(status)"
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


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def per_picture(run: dict, pictures: int) -> dict:
    """Pictures per second by the clock, and milliseconds of CPU per picture, which other processes disturb less."""
    return {
        "pictures_per_second": round(pictures / run["seconds"], 2),
        "cpu_ms_per_picture": round(1000 * run["cpu_seconds"] / pictures),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--memory", type=int, nargs="*", default=[100, 5000])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/preprocess_speed.json"))
    options = parser.parse_args()
    result = {
        "command": "python -m benchmarks.preprocess_speed " + " ".join(sys.argv[1:]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} at the start",
        "speed": {},
        "memory": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_pictures(work / "large", options.pictures, (4000, 3000))
        for level in (6, 1):
            run = plain_loop(work / "large", work / f"plain{level}", 1024, level)
            result["speed"][f"plain loop, PNG level {level}"] = per_picture(run, options.pictures)
        for workers in (0, 1, 2):
            run = measured_command(work / "large", work / f"ours{workers}", 1024, workers)
            result["speed"][f"preprocess, {workers} workers"] = per_picture(run, options.pictures)
        again = measured_command(work / "large", work / "ours2", 1024, 2)
        result["speed"]["preprocess again, nothing new"] = per_picture(again, options.pictures)
        for count in options.memory:
            write_pictures(work / f"small{count}", count, (640, 480))
            result["memory"][str(count)] = measured_command(work / f"small{count}", work / f"out{count}", 256, 2)
    result["load_at_the_end"] = round(os.getloadavg()[0], 1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

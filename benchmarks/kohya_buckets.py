"""Run kohya's sd-scripts on the same images: its bucketing script, and its load + resize + crop alone, beside ours.

Measured at revision 48d368f of 2026-02-16, whose script encodes all images but writes no latents: in
cache_batch_latents of library/train_util.py, that line is commented out. So it lacks the cost of writing.

Nothing of sd-scripts is part of this repository: it is run from its checkout, by a Python with its dependencies. One
way to such a Python, with torch, torchvision and transformers' dependencies already there (--no-deps keeps them):

    pip install --no-deps opencv-python-headless==4.10.0.84 imagesize==1.4.1 toml==0.10.2 einops==0.7.0 \\
        voluptuous==0.15.2 diffusers==0.32.1 transformers==4.54.1 huggingface-hub==0.34.3 tokenizers==0.21.4 \\
        safetensors==0.4.5 accelerate==1.6.0
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.usage import cpu_of_children

SIZES = ["--max_resolution", "1024,1024", "--min_bucket_reso", "512", "--max_bucket_reso", "2048"]

TIMED = """
import json, sys, time
from pathlib import Path
{setup}
sizes, start, cpu_start = {{}}, time.perf_counter(), time.process_time()
for path in sorted(Path(sys.argv[1]).iterdir()):
    {body}
    sizes[path.stem] = size
times = {{"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}}
print("RESULT" + json.dumps(times | {{"sizes": sizes}}))
"""
KOHYA_CROP = TIMED.format(
    setup="""
from library import train_util
manager = train_util.BucketManager(False, (1024, 1024), 512, 2048, 64)
manager.make_buckets()""",
    body="""
    pixels = train_util.load_image(str(path))
    size, resized, _ = manager.select_bucket(pixels.shape[1], pixels.shape[0])
    pixels = train_util.trim_and_resize_if_required(False, pixels, size, resized)[0]
    assert pixels.shape[1::-1] == size""",
)
OUR_CROP = TIMED.format(
    setup="""
from preprocess.images.crop import bucket_of, crop_image
from sdxl_lora.config.sections.preprocess import SizeConfig
from sdxl_lora.images.decode import open_image, upright_rgb""",
    body="""
    image = upright_rgb(open_image(path, 128))
    size = bucket_of(SizeConfig(), image.size)
    assert crop_image(image, size, [(0.5, 0.5)])[0].image.size == size""",
)
OUR_IMPORTS = """
import sys
from pathlib import Path
from datasets import load_dataset
from diffusers import AutoencoderKL
from sdxl_lora.cache.fill import LatentCache, Workers
from sdxl_lora.data.image_dataset import ImageDataset
"""
OUR_LATENTS = f"""
{OUR_IMPORTS}
pictures = ImageDataset(load_dataset("imagefolder", data_dir=sys.argv[1], split="train"))
vae = AutoencoderKL.from_pretrained(sys.argv[2]).eval()
LatentCache(Path(sys.argv[3]), pictures, "vae").fill(vae, [False], 0, Workers())
"""


def crop_alone(folder: Path, code: str, python: str = sys.executable, home: Path = Path()) -> dict:
    """Return seconds of loading, resizing and cropping, without imports, in one process; nothing is written."""
    done = run([python, "-c", code, str(folder.resolve())], home)
    return json.loads(done.stdout.split("RESULT")[1])


def kohya_script(folder: Path, vae: Path, python: str, home: Path, workers: int, out: Path) -> dict:
    """Return seconds of the whole command, imports included (load, resize, crop and encode), and its sizes."""
    out.mkdir()
    (out / "in.json").write_text("{}")
    paths = [folder, out / "in.json", out / "out.json", vae]
    flags = SIZES + (["--max_data_loader_n_workers", str(workers)] if workers else [])
    times = timed_run(
        [python, "finetune/prepare_buckets_latents.py", *(str(path.resolve()) for path in paths), *flags], home
    )
    rows = json.loads((out / "out.json").read_text())
    sizes = {name: row["train_resolution"] for name, row in rows.items()}
    return times | {"sizes": sizes, "latent_files": len(list(folder.glob("*.npz")))}


def our_latents(dataset: Path, vae: Path, out: Path) -> dict:
    """Return seconds of encoding a prepared dataset with the trainer's cache, imports included."""
    return timed_run([sys.executable, "-c", OUR_LATENTS, str(dataset), str(vae), str(out)], Path())


def seconds_of_imports(python: str, home: Path) -> dict[str, float]:
    """Return the CPU seconds before the first image, which the two commands above include."""
    theirs = timed_run([python, "finetune/prepare_buckets_latents.py", "--help"], home)
    ours = timed_run([sys.executable, "-c", OUR_IMPORTS], Path())
    return {"kohya": round(theirs["cpu_seconds"], 1), "ours": round(ours["cpu_seconds"], 1)}


def timed_run(command: list[str], home: Path) -> dict:
    start, before = time.perf_counter(), cpu_of_children()
    run(command, home)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_of_children() - before}


def run(command: list[str], home: Path) -> subprocess.CompletedProcess:
    """Run a command in the folder `home`, which it also imports from; exit with its last messages if it fails."""
    done = subprocess.run(
        command, cwd=home, env=os.environ | {"PYTHONPATH": str(home.resolve())}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{command[1][:60]} failed:\n{done.stderr[-2000:]}")
    return done

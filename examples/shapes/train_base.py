"""Train the shapes base from scratch: VAE, then both text encoders and the UNet; writes a diffusers folder.

    python -m examples.shapes.train_base --output_dir examples/shapes/base --work_dir shapes_run

After a kill, the same command resumes where it stopped. Times and results are in README.md.
"""

import argparse
import copy
import json
import os
from pathlib import Path

import torch
from PIL import Image

from examples.shapes.denoiser import odd_pool, scene_pool, train_denoiser
from examples.shapes.models import build_pipeline, build_tokenizer
from examples.shapes.quality import base_quality, draw_prompts, plain_prompt
from examples.shapes.vae import train_vae
from examples.shapes.world import combinations

GRID_COLUMNS = 7


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="examples/shapes/base", help="the finished diffusers folder")
    parser.add_argument("--work_dir", default="shapes_run", help="logs, sample grids and the state to resume from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae_steps", type=int, default=3600)
    parser.add_argument("--steps", type=int, default=4600, help="of the UNet and the text encoders")
    parser.add_argument("--odd_steps", type=int, default=800, help="after those, with shapes that have no name")
    parser.add_argument("--pictures", type=int, default=24000, help="scenes that are drawn and encoded once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(args.threads)
    os.makedirs(args.work_dir, exist_ok=True)
    vae = train_vae(args.seed, args.vae_steps, args.work_dir, args.device)
    tokenizer = build_tokenizer()

    def on_interval(step, *parts):
        pipeline = build_pipeline(vae, parts[0], parts[1], tokenizer, parts[2])
        grid(pipeline).save(os.path.join(args.work_dir, f"grid-{step:05d}.png"))
        entry = {"step": step, **base_quality(pipeline, combinations()[::5])}
        print(json.dumps(entry), flush=True)
        with open(os.path.join(args.work_dir, "quality.jsonl"), "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    pool = scene_pool(vae, args.seed, args.pictures, args.work_dir)
    odd = odd_pool(vae, args.seed, args.pictures // 4, args.work_dir)
    steps = (args.steps, args.odd_steps)
    parts = train_denoiser(tokenizer, pool, odd, args.seed, *steps, args.work_dir, args.device, on_interval)
    pipeline = build_pipeline(vae, parts[0], parts[1], tokenizer, parts[2])
    save_half(pipeline, args.output_dir)
    print(f"The base is in {args.output_dir}; logs and sample grids are in {args.work_dir}.")


def grid(pipeline):
    """Return an image of GRID_COLUMNS x 4 samples, spread over the combinations, at twice their size."""
    chosen = combinations()[:: len(combinations()) // (4 * GRID_COLUMNS)][: 4 * GRID_COLUMNS]
    images = draw_prompts(pipeline, [plain_prompt(*c) for c in chosen], seed=0)
    image_grid = Image.new("RGB", (GRID_COLUMNS * 130, 4 * 130), "white")
    for index, image in enumerate(images):
        image_grid.paste(image.resize((128, 128)), (index % GRID_COLUMNS * 130, index // GRID_COLUMNS * 130))
    return image_grid


def save_half(pipeline, folder):
    """Write the pipeline's parts in float16 safetensors and leave the given pipeline unchanged.

    transformers loads in the dtype that a config names, diffusers in float32: without a requested dtype, the parts
    would not fit together. So the text encoders' configs name float32.
    """
    names = ("vae", "text_encoder", "text_encoder_2", "unet")
    parts = {name: copy.deepcopy(getattr(pipeline, name)).cpu().half() for name in names}
    build_pipeline(**parts, tokenizer=pipeline.tokenizer).save_pretrained(folder, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):
        path = Path(folder) / name / "config.json"
        about = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

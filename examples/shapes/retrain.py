"""Retrain the shapes base's UNet for another objective, on the images that it was trained with.

    python -m examples.shapes.retrain flow --output_dir runs/flow_base --work_dir runs/shapes_flow

After a kill, the same command resumes where it stopped. Times and results are in README.md.
"""

import argparse
import json
import os
import random
import shutil
from pathlib import Path

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from examples.shapes.denoiser import BATCH, DROPPED_CAPTIONS, embed, odd_pool, sample, scene_pool
from examples.shapes.models import build_scheduler
from examples.shapes.pool import FRAMES
from examples.shapes.quality import BASE, base_quality, load_base
from examples.shapes.stage import run_stage
from examples.shapes.world import combinations
from sdxl_lora.diffusion.flow import FlowSampler, FlowSchedule
from sdxl_lora.diffusion.objective import prediction_target, times_of

ODD_COUNT = 8  # nameless shapes of a batch, which keep the base's knowledge beyond its captions
PEAK_LR = 1e-3


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("objective", choices=("v", "v_zero_snr", "flow"))
    parser.add_argument("--output_dir", required=True, help="the finished diffusers folder")
    parser.add_argument("--work_dir", required=True, help="encoded images, log, and the state to resume from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--images", type=int, default=6000, help="scenes that are drawn and encoded once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    return parser.parse_args(argv)


def schedules_of(objective):
    """Return (the schedule to train with, the scheduler to draw with, the one to save) of an objective."""
    if objective == "flow":
        return FlowSchedule(), FlowSampler(), FlowMatchEulerDiscreteScheduler()
    config = {name: value for name, value in build_scheduler().config.items() if not name.startswith("_")}
    config["prediction_type"] = "v_prediction"
    if objective == "v_zero_snr":
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    drawing = type(build_scheduler()).from_config(config)
    return DDPMScheduler.from_config(config), drawing, drawing


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(args.threads)
    os.makedirs(args.work_dir, exist_ok=True)
    pipeline = load_base(BASE)
    schedule, pipeline.scheduler, kept = schedules_of(args.objective)
    pool = scene_pool(pipeline.vae, args.seed, args.images, args.work_dir)
    odd = odd_pool(pipeline.vae, args.seed, args.images // 4, args.work_dir)
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
    unet = pipeline.unet.to(memory_format=torch.channels_last).requires_grad_(True)

    def loss_at(step):
        chance = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rng = random.Random(f"retrain {args.seed} {step}")
        size = rng.choice(FRAMES)
        parts = [
            sample(pool[size], len(pool[size]["scenes"]), BATCH - ODD_COUNT, rng, chance),
            sample(odd[size], odd[size]["count"], ODD_COUNT, rng, chance),
        ]
        captions, latents, time_ids = (
            parts[0][0] + parts[1][0],
            *(torch.cat(of) for of in list(zip(*parts, strict=True))[1:]),
        )
        noise = torch.randn(latents.shape, generator=chance)
        timesteps = torch.randint(1000, (len(latents),), generator=chance)
        keep = (torch.rand(len(latents), generator=chance) >= DROPPED_CAPTIONS).float()
        with torch.no_grad():
            hidden, pooled = embed(pipeline.tokenizer, encoders, captions)
        noisy = schedule.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        conditions = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids}
        times, hidden = times_of(schedule, timesteps), hidden * keep[:, None, None]
        predicted = unet(noisy, times, hidden, added_cond_kwargs=conditions).sample
        return (predicted - prediction_target(schedule, latents, noise, timesteps)).square().mean()

    def on_interval(step):
        entry = {"step": step, **base_quality(pipeline, combinations()[::5])}
        print(json.dumps(entry), flush=True)

    run_stage(args.objective, unet, loss_at, args.steps, PEAK_LR, args.work_dir, on_interval, interval=args.steps)
    save_beside(BASE, unet, kept, Path(args.output_dir))
    print(f"The base is in {args.output_dir}, log and state are in {args.work_dir}.")


def save_beside(base, unet, scheduler, folder):
    """Write a UNet in half precision and its scheduler, with all other parts of a base."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    unet.half().save_pretrained(folder / "unet", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

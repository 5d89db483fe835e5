"""Ranks masked by the timestep, as in T-LoRA (arXiv:2507.05964), beside a plain LoRA, for few training images.

    python -m benchmarks.t_lora --seeds 0 1

At timestep t only the first r(t) ranks train: half of them at the highest noise level, all at the lowest,
r(t) = r/2 + floor(r/2 * (1 - t/T)). "masked" starts as a plain LoRA does; "masked, orthogonal" starts with first
factors whose rows are orthogonal and equally long. The files are plain LoRAs, which clients apply whole. So they are
drawn whole, and once more with the mask, as the paper's own code does.

Trains the object concept of examples/shapes from 1, 4 and 16 images, repeated to 160 per pass, with class images. It
writes t_lora.json and t_lora.md into --output_dir; trainings that are already there are kept.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.learning import SCORES, percent
from benchmarks.trainers import our_flags
from examples.shapes.concepts import write_concept
from examples.shapes.learning import TRIGGER_WORD, lora_quality, spread, write_class_images
from examples.shapes.quality import BASE, base_quality, concept_quality, load_base
from examples.shapes.world import colour_pairs, combinations

PLAIN, MASKED, ORTHOGONAL = "plain", "masked", "masked, orthogonal"
ROWS = 160  # of the concept in a pass
TIMESTEPS = 1000
DRAWN = ("whole", "masked")


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--class_images", type=int, default=100)
    parser.add_argument("--asked", type=int, default=28, help="prompts with and without the trigger word")
    parser.add_argument("--known", type=int, default=70, help="prompts for known shapes, of 140")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/t_lora"))
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    path = args.output_dir / "t_lora.json"
    settings = {name: getattr(args, name) for name in ("steps", "rank", "class_images", "asked", "known")}
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"settings": settings, "records": []}
    if results["settings"] != settings:
        sys.exit(f"{path} was measured with other settings: move it away, or give those")
    done = {(one["images"], one["seed"], one["kind"]) for one in results["records"]}
    for seed in args.seeds:
        for images in args.images:
            for kind in (PLAIN, MASKED, ORTHOGONAL):
                if (images, seed, kind) not in done:
                    results["records"] += trained_and_scored(args, images, seed, kind)
                    args.output_dir.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    (args.output_dir / "t_lora.md").write_text(table(args, results["records"]))


def trained_and_scored(args, images, seed, kind):
    """Train once; return a record of its file drawn whole and, for masked ranks, another of it drawn masked."""
    data = prepared(args, images)
    run = args.work_dir / f"{kind.replace(', ', '-')}-{images}-{seed}"
    flags = our_flags(
        pretrained_model_name_or_path=BASE, train_data_dir=data, output_dir=run, cache_dir=data.parent / "cache",
        resolution=64, rank=args.rank, target_modules="all-linear+conv", learning_rate=2e-3, lr_scheduler="cosine",
        snr_gamma=1.0, train_batch_size=8, max_train_steps=args.steps, mixed_precision="no", seed=seed,
    )  # fmt: skip
    subprocess.run([sys.executable, "-m", "benchmarks.t_lora", "train", kind, *flags], check=True)
    lora = run / "pytorch_lora_weights.safetensors"
    records = [{"images": images, "seed": seed, "kind": kind, "drawn": "whole"}]
    records[0] |= lora_quality(lora, args.asked, known=args.known)
    if kind != PLAIN:
        records.append({**records[0], "drawn": "masked", **masked_quality(lora, args)})
    print(json.dumps(records), flush=True)
    return records


def prepared(args, images):
    """Return the dataset of this many concept images and the class images; it is made only once."""
    folder = args.work_dir / f"{images}-images"
    if not (folder / "data" / "metadata.jsonl").exists():
        write_concept(folder / "raw" / f"{ROWS // images}_object", "object", images)
        write_class_images(folder / "class", args.class_images)
        flags = {"input_dir": folder / "raw", "class_images": folder / "class", "output_dir": folder / "data"}
        flags |= {"trigger_word": TRIGGER_WORD, "resolution": 64, "caption_model": "none"}
        command = [sys.executable, "-m", "preprocess", *(f"--{name}={value}" for name, value in flags.items())]
        subprocess.run(command, check=True)
    return folder / "data"


def masked_quality(lora, args):
    """Return the shares of `lora_quality`, drawn with masked ranks."""
    pipeline = load_base(BASE)
    pipeline.load_lora_weights(lora)
    RankMask(args.rank).put_on(pipeline.unet)
    pairs = spread([("star", *pair) for pair in colour_pairs()], args.asked)
    known = base_quality(pipeline, spread(combinations(), args.known))["right"]
    return concept_quality(pipeline, "object", TRIGGER_WORD, pairs) | {"known": known}


class RankMask:
    """Mask of a UNet's LoRA ranks by the timesteps of the current forward."""

    def __init__(self, rank: int):
        self.rank, self.timesteps = rank, torch.zeros(1)

    def put_on(self, unet: nn.Module) -> None:
        """Mask the first factors' outputs in each forward of the UNet."""
        unet.register_forward_pre_hook(self.note_timesteps, with_kwargs=True)
        for name, module in unet.named_modules():
            if ".lora_A." in name:
                module.register_forward_hook(self.mask)

    def note_timesteps(self, unet, args, kwargs) -> None:
        timesteps = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.timesteps = torch.as_tensor(timesteps).flatten().float()

    def mask(self, module, args, out: Tensor) -> Tensor:
        """Return `out`, (B, ..., rank) of a linear layer or (B, rank, h, w), with the masked ranks at 0."""
        least = self.rank // 2
        active = least + ((self.rank - least) * (1 - self.timesteps / TIMESTEPS)).floor()
        mask = (torch.arange(self.rank, device=out.device) < active.to(out.device)[:, None]).to(out.dtype)
        is_linear = isinstance(module, nn.Linear)
        shape = (len(mask), *[1] * (out.dim() - 2), self.rank) if is_linear else (len(mask), self.rank, 1, 1)
        return out * mask.view(shape)


def train(kind: str, flags: list[str]) -> int:
    """Run the trainer with a mask on the UNet's LoRA; return its exit code."""
    import sdxl_lora.training.model
    from sdxl_lora.config.cli import load_config
    from sdxl_lora.config.train import TrainConfig
    from train_sdxl_lora import main as trainer

    config, model_of_training = load_config(TrainConfig, flags), sdxl_lora.training.model
    add_lora = model_of_training.add_lora

    def add_masked(unet, **how):
        parameters = add_lora(unet, **how)
        for name, module in unet.named_modules():
            if kind == ORTHOGONAL and ".lora_A." in name:
                nn.init.orthogonal_(module.weight, 3**-0.5)  # as long as Kaiming's rows
        RankMask(config.adapter.rank).put_on(unet)
        return parameters

    if kind != PLAIN:
        setattr(model_of_training, "add_lora", add_masked)  # noqa: B010 - mypy holds an assignment to the signature
    return trainer(config)


def table(args, records):
    """Return the means over the seeds as Markdown, with the lowest and the highest in brackets."""
    seeds = len({one["seed"] for one in records})
    lines = [
        f"Means over {seeds} seeds (lowest to highest): {args.steps} steps of 8 images, rank "
        f"{args.rank} on all linear layers and convolutions, learning rate 0.002 falling as a cosine, min-SNR 1, "
        f"{ROWS} rows of the concept from so many images and {args.class_images} class images; {args.asked} prompts "
        f"with the trigger word, {args.asked} without, {args.known} for known shapes.",
        "",
        f"| training images | LoRA | drawn | {' | '.join(SCORES.values())} |",
        "|---|---|---|---|---|---|",
    ]
    for images in args.images:
        for kind, drawn in ((PLAIN, "whole"), *((kind, how) for kind in (MASKED, ORTHOGONAL) for how in DRAWN)):
            chosen = [one for one in records if (one["images"], one["kind"], one["drawn"]) == (images, kind, drawn)]
            if chosen:
                scores = " | ".join(percent([one[name] for one in chosen]) for name in SCORES)
                lines.append(f"| {images} | {kind} | {drawn} | {scores} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(train(sys.argv[2], sys.argv[3:]) if sys.argv[1:2] == ["train"] else main())

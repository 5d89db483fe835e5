"""Check that our loss is that of diffusers' script, step for step, on the same images, captions, noise and timesteps.

    python -m benchmarks.equal_losses --peer train_text_to_image_lora_sdxl.py --steps 30

The peer is diffusers' examples/text_to_image/train_text_to_image_lora_sdxl.py (it needs torchvision); it is not part of
this repository. It trains on images of examples/shapes in a process that records its random draws: the pixels it read,
the VAE's draw, noise, timesteps, its LoRA's first weights, its losses. We then take the same steps with our own parts,
from the images on: captions, tokens, embeddings, size conditioning, latents, LoRA, loss, clipping, AdamW. So equal
losses at every step mean equal weights, too. Writes equal_losses.json and equal_losses.md into --output_dir, and exits
with 1 if a loss differs by more than 1e-5.
"""

import argparse
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.learning import make_dataset
from examples.shapes.quality import BASE
from sdxl_lora.config.sections.objective import ObjectiveConfig
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.data.size_conditioning import time_ids
from sdxl_lora.diffusion.objective import noise_prediction_loss
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import adapter_parameters
from sdxl_lora.models.loading import Base, load_schedulers, load_text_parts, load_unet, load_vae
from sdxl_lora.models.text_encoders import encode_prompts
from sdxl_lora.models.vae import vae_moments
from sdxl_lora.optimizers.optimizers import make_optimizer

LIMIT = 1e-5
RANK, LEARNING_RATE, MAX_GRAD_NORM = 8, 1e-3, 1.0
CASES = {
    "epsilon": {},
    "epsilon, min-SNR 5, noise offset": {"snr_gamma": 5.0, "noise_offset": 0.1},
    "v, min-SNR 5": {"snr_gamma": 5.0, "prediction_type": "v_prediction"},
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="path of diffusers' train_text_to_image_lora_sdxl.py")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--work_dir", type=Path, default=Path("runs/equal_losses"), help="emptied at the start")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    shutil.rmtree(args.work_dir, ignore_errors=True)
    data = make_dataset(args.work_dir)
    results = []
    for number, (case, options) in enumerate(CASES.items()):
        record = args.work_dir / f"record-{number}.pt"
        run_peer(args, data, record, options)
        peer = torch.load(record, weights_only=True)
        ours = our_losses(peer, data, options)
        theirs = [step["loss"] for step in peer["steps"]]
        standing = our_losses(peer, data, options, learning_rate=0.0)
        difference, control = largest_difference(ours, theirs), largest_difference(standing, theirs)
        results.append({"case": case, "largest_difference": difference, "without_steps": control})
        results[-1] |= {"diffusers": theirs, "ours": ours}
        print(
            f"{case}: {len(ours)} losses, largest difference {difference:.1e}, {control:.1e} without steps", flush=True
        )
    write_results(args, results)
    return int(any(result["largest_difference"] > LIMIT for result in results))


def largest_difference(ours, theirs):
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def run_peer(args, data, record, options):
    flags = {
        "pretrained_model_name_or_path": BASE,
        "train_data_dir": data,
        "caption_column": "text",
        "output_dir": record.with_suffix(""),
        "resolution": 64,
        "rank": RANK,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": MAX_GRAD_NORM,
        "train_batch_size": args.batch,
        "max_train_steps": args.steps,
        "mixed_precision": "no",
        "report_to": "tensorboard",
        "seed": 0,
        **options,
    }
    words = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-c", "import sys; from benchmarks.equal_losses import record; record(*sys.argv[1:])"]
    with open(record.with_suffix(".log"), "w", encoding="utf-8") as log:
        code = subprocess.run([*command, record, args.peer, *words], stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise RuntimeError(f"the peer ended with {code}, see {log.name}")


def record(to, peer, *flags):
    """Run the peer in this process and record its random draws and its losses."""
    import accelerate
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.models.autoencoders import vae as vae_module

    steps: list[dict] = []
    first_weights: dict = {}

    def before(owner, name, note):
        """Call `note` with the arguments of every call."""
        original = getattr(owner, name)

        def noted(*args, **kwargs):
            note(*args, **kwargs)
            return original(*args, **kwargs)

        setattr(owner, name, noted)

    def note_weights(unet, *_, **__):
        if not first_weights:
            lora = {name: parameter for name, parameter in unet.named_parameters() if ".lora_" in name}
            first_weights.update({name: parameter.detach().clone() for name, parameter in lora.items()})

    draw = vae_module.randn_tensor

    def noted_draw(*args, **kwargs):
        steps[-1]["vae_draw"] = draw(*args, **kwargs)
        return steps[-1]["vae_draw"].clone()

    vae_module.randn_tensor = noted_draw
    before(AutoencoderKL, "encode", lambda _, pixels: steps.append({"pixels": pixels.clone()}))
    before(DDPMScheduler, "add_noise", lambda _, latents, noise, timesteps: steps[-1].update(
        latents=latents.clone(), noise=noise.clone(), timesteps=timesteps.clone()))  # fmt: skip
    before(UNet2DConditionModel, "forward", note_weights)
    before(accelerate.Accelerator, "backward", lambda _, loss, **__: steps[-1].update(loss=loss.item()))
    sys.argv = [peer, *flags]
    runpy.run_path(peer, run_name="__main__")
    torch.save({"steps": steps, "first_weights": first_weights}, to)


def our_losses(peer, data, options, learning_rate=LEARNING_RATE):
    """Return the losses of the peer's steps, computed by our parts."""
    base = Base(str(BASE))
    images = ImageDataset(open_dataset(str(data)), resolution=64)
    loaded = [images.load(index) for index in range(len(images))]
    schedule, _ = load_schedulers(base, ObjectiveConfig(prediction_type=options.get("prediction_type")))
    vae, (tokenizers, encoders) = load_vae(base), load_text_parts(base, torch.float32)
    unet = load_unet(base, torch.float32).train()
    parameters = add_lora(unet, RANK, RANK)
    begin_like(unet, peer["first_weights"])
    optimizer = make_optimizer("adamw", parameters, learning_rate)
    losses = []
    for step in peer["steps"]:
        rows = [index_of(pixels, loaded) for pixels in step["pixels"]]
        moments = [vae_moments(vae, loaded[row]["pixels"][None])[0] for row in rows]
        mean, std = (torch.stack([moment[name] for moment in moments]) for name in ("mean", "std"))
        latents = mean + std * step["vae_draw"]
        torch.testing.assert_close(latents, step["latents"], atol=1e-5, rtol=1e-5)
        prompts = [images.examples[row].caption for row in rows]
        prompt_embeds, pooled_embeds = encode_prompts(prompts, tokenizers, encoders)
        sizes = [(*(loaded[row][name] for name in ("original_size", "crop_top_left")), (64, 64)) for row in rows]
        conditions = {"prompt_embeds": prompt_embeds, "pooled_embeds": pooled_embeds}
        conditions["time_ids"] = torch.cat([time_ids(*of_image) for of_image in sizes])
        objective = ObjectiveConfig(snr_gamma=options.get("snr_gamma"))
        loss = noise_prediction_loss(
            unet, schedule, latents, conditions, step["noise"], step["timesteps"], objective
        ).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def begin_like(unet, first_weights):
    """Give our LoRA the peer's first weights; both must have the same layers."""
    ours = adapter_parameters(unet)
    theirs = {name.replace(".default", ""): tensor for name, tensor in first_weights.items()}
    assert ours.keys() == theirs.keys()
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])


def index_of(pixels, loaded):
    """Return the index of our image that the peer read, by its pixels."""
    found = [row for row, image in enumerate(loaded) if torch.allclose(image["pixels"], pixels, atol=1e-5)]
    assert found, "the peer read an image that is not one of ours"
    return found[0]


def write_results(args, results):
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "equal_losses.json").write_text(json.dumps(results, indent=1) + "\n")
    shown = sorted({0, 1, 2, args.steps // 2, args.steps - 1})
    lines = [
        f"{args.steps} steps of {args.batch} images, rank {RANK}, AdamW at {LEARNING_RATE}, float32 on the CPU.",
        "Both get the same images, VAE draws, noise, timesteps and first LoRA weights; captions, embeddings, size",
        "conditioning, loss and step are each trainer's own. In the last column, our LoRA does not change.",
        "",
        f"| | | {' | '.join(f'step {step + 1}' for step in shown)} | largest difference | without steps |",
        f"|---|---|{'---|' * len(shown)}---|---|",
    ]
    for result in results:
        for name in ("diffusers", "ours"):
            losses = " | ".join(f"{result[name][step]:.7f}" for step in shown)
            end = f"{result['largest_difference']:.1e} | {result['without_steps']:.1e}" if name == "ours" else "|"
            lines.append(f"| {result['case'] if name == 'diffusers' else ''} | {name} | {losses} | {end} |")
    (args.output_dir / "equal_losses.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())

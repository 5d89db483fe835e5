"""Pictures with a run's LoRA at several weights beside the base, in a process of its own.

    python -m webui.runs.compare REQUEST.yaml FOLDER

REQUEST holds run, stages (the finished LoRA and checkpoints, by folder), prompts, weights, seed, steps, guidance_scale,
height and width. Pictures go to FOLDER as they are done: row-<prompt>-<stage>-<weight>.png, all by the same seed.
"""

import sys
from pathlib import Path

import torch
import yaml
from diffusers import StableDiffusionXLPipeline

from sdxl_lora.config.names import DIFFUSERS_NAME
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.distributed.accelerator import device_here
from sdxl_lora.errors import RUN_ERRORS
from sdxl_lora.models.latents import latents_for_vae
from sdxl_lora.models.loading import base_of, check_base, load_schedulers, load_text_parts, load_unet, load_vae
from webui.runs.drawings import image_path
from webui.runs.launch import read_config

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pipeline_of(config: TrainConfig) -> StableDiffusionXLPipeline:
    """The run's base, in its precision."""
    base = base_of(config.model)
    check_base(base)
    device = device_here()
    dtype = DTYPES[config.compute.mixed_precision]
    tokenizers, encoders = load_text_parts(base, dtype)
    _, scheduler = load_schedulers(base, config.objective)
    pipeline = StableDiffusionXLPipeline(
        vae=load_vae(base),  # in float32: SDXL's overflows in half precision
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=load_unet(base, dtype),
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def draw(request: dict, folder: Path) -> None:
    run = Path(request["run"])
    pipeline = pipeline_of(read_config(TrainConfig, run / "config.yaml"))

    def draw_prompts(stage: str, weight: float) -> None:
        for number, prompt in enumerate(request["prompts"]):
            latents = pipeline(
                prompt,
                height=request["height"],
                width=request["width"],
                num_inference_steps=request["steps"],
                guidance_scale=request["guidance_scale"],
                generator=torch.Generator().manual_seed(request["seed"]),
                output_type="latent",
            ).images
            with torch.autocast(latents.device.type, enabled=False):
                pixels = pipeline.vae.decode(latents_for_vae(pipeline.vae.config, latents.float())).sample
            image = pipeline.image_processor.postprocess(pixels.float().cpu())[0]
            image.save(image_path(folder, number, stage, weight))
            print(f"prompt {number + 1}, {stage or 'base'}, weight {weight:g}", flush=True)

    draw_prompts("", 0.0)
    for stage in request["stages"]:
        pipeline.load_lora_weights(str(run if stage == "final" else run / stage), weight_name=DIFFUSERS_NAME)
        for weight in request["weights"]:
            pipeline.set_adapters(pipeline.get_active_adapters(), [weight] * len(pipeline.get_active_adapters()))
            draw_prompts(stage, weight)
        pipeline.unload_lora_weights()


if __name__ == "__main__":
    try:
        draw(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
    except RUN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

"""Models and data of the speed benchmarks: bases of random weights, saved as diffusers folders, and images.

toy: for two CPU cores. An SDXL with a fifth of the channels and a fifth of the transformer layers; its VAE and text
encoders have the share of the UNet's work that SDXL's have (an encoding is 0.71 of a UNet forward; SDXL: 0.72). sdxl:
the full architecture in bfloat16, for a GPU.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from examples import full_sdxl
from examples.tiny_sdxl import tiny_text_config, tiny_tokenizer

RESOLUTION = {"toy": 256, "sdxl": 1024}
TOY_HIDDEN = (96, 160)
TOY_UNET = {
    **full_sdxl.UNET,
    "sample_size": 32,
    "block_out_channels": (64, 128, 256),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),  # heads, as in SDXL's config: 64 channels each
    "cross_attention_dim": sum(TOY_HIDDEN),
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + TOY_HIDDEN[1],
}
TOY_VAE = {**full_sdxl.VAE, "block_out_channels": (16, 32, 72, 72), "norm_num_groups": 8, "sample_size": 256}
UNETS, VAES = {"toy": TOY_UNET, "sdxl": full_sdxl.UNET}, {"toy": TOY_VAE, "sdxl": full_sdxl.VAE}


def save_base(size: str, folder: Path) -> Path:
    """Return the base of a size under `folder`, made once."""
    path = folder / f"base-{size}"
    if not (path / "model_index.json").exists():
        make_base(size).save_pretrained(path)
    return path


def make_base(size: str) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tokenizers = [tiny_tokenizer(), tiny_tokenizer(pad_token="!")]
    if size == "toy":
        text = [tiny_text_config(tokenizer, hidden) for tokenizer, hidden in zip(tokenizers, TOY_HIDDEN, strict=True)]
        dtype = torch.float32
    else:
        text = [CLIPTextConfig(**config) for config in (full_sdxl.TEXT_ENCODER, full_sdxl.TEXT_ENCODER_2)]
        dtype = torch.bfloat16
    device = torch.device("cuda" if size == "sdxl" and torch.cuda.is_available() else "cpu")  # draws 100 times faster
    with device:
        parts = {
            "unet": UNet2DConditionModel(**UNETS[size]),
            "vae": AutoencoderKL(**VAES[size]),
            "text_encoder": CLIPTextModel(text[0]),
            "text_encoder_2": CLIPTextModelWithProjection(text[1]),
        }
    return StableDiffusionXLPipeline(
        **{name: part.to("cpu", dtype) for name, part in parts.items()},
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    )


def write_images(folder: Path, count: int, resolution: int) -> Path:
    """Write a dataset as preprocess does: smooth random images of the training's size, each with a caption."""
    path = folder / f"pictures-{count}-{resolution}"
    if (path / "metadata.jsonl").exists():
        return path
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        name = f"{number:05d}.png"
        coarse.resize((resolution, resolution), Image.Resampling.BICUBIC).save(path / name, compress_level=1)
        sizes = {"original_size": [resolution, resolution], "crop_top_left": [0, 0]}
        lines.append(json.dumps({"file_name": name, "text": f"colours, number {number}", **sizes}))
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path

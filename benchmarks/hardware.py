"""Peak rates of the machine, and the FLOPs and bytes that a training step needs at least."""

import json
import time
from pathlib import Path
from statistics import median

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from sdxl_lora.lora.inject import add_lora


def step_flops(
    config: dict, rank: int, batch: int, resolution: int, checkpointing: bool = False, remember_in: Path | None = None
) -> dict[str, float]:
    """Return the FLOPs of matrix products, convolutions and attention in a UNet of this config, with its LoRA.

    torch counts them while the model runs on the meta device, as our trainer runs it: `forward` without LoRA, and
    `step`, forward and backward with LoRA. Also the number of `weights` and of trained `parameters`.

    Args:
        remember_in: folder for the counts, which take eight seconds for SDXL.
    """
    one = flops_of_one(config, rank, resolution, checkpointing, remember_in)
    return one | {name: one[name] * batch for name in ("forward", "step")}


def flops_of_one(
    config: dict, rank: int, resolution: int, checkpointing: bool, remember_in: Path | None
) -> dict[str, float]:
    """Return `step_flops` of one image, to which those of a batch are proportional."""
    counted = f"flops-{config['block_out_channels'][0]}-{rank}-{resolution}-{checkpointing:d}.json"
    if remember_in is not None and (remember_in / counted).exists():
        return json.loads((remember_in / counted).read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    unet.requires_grad_(False)
    weights = sum(parameter.numel() for parameter in unet.parameters())
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        run_unet(unet, 1, resolution)
    parameters = add_lora(unet, rank, rank)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    with FlopCounterMode(display=False) as step:
        run_unet(unet, 1, resolution).mean().backward()
    counts = {
        "forward": forward.get_total_flops(),
        "step": step.get_total_flops(),
        "weights": weights,
        "parameters": sum(parameter.numel() for parameter in parameters),
    }
    if remember_in is not None:
        remember_in.mkdir(parents=True, exist_ok=True)
        (remember_in / counted).write_text(json.dumps(counts))
    return counts


def run_unet(unet, batch: int, resolution: int) -> torch.Tensor:
    config, device = unet.config, unet.device
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return unet(
        torch.empty(batch, config.in_channels, resolution // 8, resolution // 8, device=device),
        torch.empty(batch, dtype=torch.int64, device=device),
        encoder_hidden_states=torch.empty(batch, 77, config.cross_attention_dim, device=device),
        added_cond_kwargs={
            "text_embeds": torch.empty(batch, pooled, device=device),
            "time_ids": torch.empty(batch, 6, device=device),
        },
    ).sample


def step_bytes(flops: dict[str, float], precision: str) -> float:
    """Return the least bytes that a step moves: all weights for forward and again for backward, and the optimizer's.

    AdamW reads a parameter, its gradient and two moments and writes three of them, each of 4 bytes. Activations are
    left out, as they may stay in caches.
    """
    return 2 * flops["weights"] * (4 if precision == "no" else 2) + 7 * 4 * flops["parameters"]


def measured_peaks(precision: str, threads: int) -> dict[str, float]:
    """Return the FLOP/s of the best of some square matrix products in the step's precision, and bytes/s of a copy."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    sizes = (4096, 8192) if device.type == "cuda" else (512, 1024, 2048)
    flops = max(2 * size**3 / seconds_of(product(size, dtype, device), device) for size in sizes)
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), device)
    return {"flops_per_second": flops, "bytes_per_second": copied}


def product(size: int, dtype: torch.dtype, device: torch.device):
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    return lambda: torch.mm(left, right, out=out)


def seconds_of(call, device: torch.device, times: int = 7) -> float:
    """Return the median time of a call, after two that do not count."""
    seconds = []
    for _ in range(times + 2):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds[2:])

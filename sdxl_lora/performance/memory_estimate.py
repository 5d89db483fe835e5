"""Memory and disk space of a training, counted from shapes before anything is loaded.

Counts trained values, gradients, optimizer state and cache records; memory_budget.py counts weights and activations.
"""

from collections.abc import Iterable

import torch
from safetensors.torch import save
from torch import nn

GIB = 2**30
CUDA_CONTEXT = 0.8  # GiB
# Bytes of state for each trained value; 8-bit optimizers keep tensors under 4096 values in float32
OPTIMIZER_BYTES = {
    "adamw": 8,
    "adamw8bit": 2,
    "paged_adamw8bit": 0,
    "lion": 4,
    "lion8bit": 1,
    "prodigy": 16,
    "prodigy_plus_schedule_free": 5,
    "adafactor": 0,
    "schedule_free_adamw": 8,
    "came": 5,
    "adopt": 8,
    "muon": 4,
}
SMALL = 4096


def training_bytes(parameters: Iterable[nn.Parameter], optimizer: str, has_average: bool) -> int:
    """Count trained float32 values, their gradients, optimizer state (Adam's for unknown ones) and moving average."""
    per_value = OPTIMIZER_BYTES.get(optimizer, 8)
    total = 0
    for parameter in parameters:
        is_small = "8bit" in optimizer and parameter.numel() < SMALL
        state = (4 if "lion" in optimizer else 8) if is_small else per_value
        total += parameter.numel() * (4 + 4 + state + 4 * has_average)
    return total


def record_bytes(shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> int:
    """Return the size of a cache record's file."""
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    return len(save(tensors, {"crc32": 8 * "0"}))


def latent_record(size: tuple[int, int], channels: int, factor: int, masked: bool) -> int:
    """Return the bytes of an image's record in the cache.

    Args:
        size: height and width in pixels.
        channels, factor: of the VAE's latents, and pixels per latent along a side.
    """
    shape: tuple[int, ...] = (channels, size[0] // factor, size[1] // factor)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "mean": (shape, torch.float32),
        "std": (shape, torch.float32),
    }
    shapes |= {"original_size": ((2,), torch.int64), "crop_top_left": ((2,), torch.int64)}
    return record_bytes(shapes | ({"mask": ((1, *shape[1:]), torch.float32)} if masked else {}))


def text_record(widths: tuple[int, int], pooled: int, chunks: int, dtype: torch.dtype) -> int:
    """Return the bytes of a prompt's record in the cache; `widths` are those of the two encoders' hidden states."""
    return record_bytes({"prompt_embeds": ((77 * chunks, sum(widths)), dtype), "pooled_embeds": ((pooled,), dtype)})

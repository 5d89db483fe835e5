"""Device memory: how much is held, giving it back, and what to change when it does not suffice."""

import contextlib
import gc

import psutil
import torch

from sdxl_lora.errors import OutOfMemory


def memory_gib(device: torch.device) -> float:
    """The most memory reserved so far on a CUDA device, else what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def free_memory() -> None:
    """Give back what deleted models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def out_of_memory_advice(device: torch.device, resolution: int, batch_size: int, smaller: list[str]):
    """Turn torch's error into one that says what to change.

    Args:
        smaller: what to try, the gentlest first (the rungs below the present one, see budget.py).
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        batch = ["a smaller --train_batch_size with more --gradient_accumulation_steps"] if batch_size > 1 else []
        raise OutOfMemory(
            f"out of memory at {resolution} px, batch {batch_size}, peak {memory_gib(device):.1f} GiB ({error}). "
            f"Try one after the other: {'; '.join([*smaller, *batch, 'a smaller --resolution'])}."
        ) from error

"""Device memory: how much is held, how to release it, and what to change when it does not suffice."""

import contextlib
import ctypes
import gc
import os

import psutil
import torch

from sdxl_lora.errors import OutOfMemory
from sdxl_lora.operating_system import GPU_MEMORY_SPILLS
from sdxl_lora.performance.memory_estimate import CUDA_CONTEXT, GIB

COUNTING = ("cuda", "xpu")  # devices whose allocators count alike; ROCm's is called cuda too
FULL = 0.97  # of a GPU's memory: Windows keeps the rest for itself
USABLE = 0.9  # of free memory: the rest is lost to fragmentation


def memory_gib(device: torch.device) -> float:
    """Return a GPU's peak of reserved memory; on Apple's GPUs and on a CPU, what this process holds now."""
    if device.type in COUNTING:
        return torch.get_device_module(device).max_memory_reserved(device) / 2**30
    return held_bytes(device) / 2**30


def held_bytes(device: torch.device) -> int:
    """Return the bytes that this process holds now of a device's memory; on a CPU, of the machine's."""
    if device.type in COUNTING:
        return torch.get_device_module(device).memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss


def usable_bytes(device: torch.device) -> int:
    """Return the bytes of a device's memory that this process can have, including those it holds and CUDA_CONTEXT.

    Without a GPU, the process's share of the machine's available memory, of which Apple's GPUs may use a part.
    """
    held, available = held_bytes(device), psutil.virtual_memory().available
    if device.type == "mps":
        return round(USABLE * min(available + held, torch.mps.recommended_max_memory())) + round(CUDA_CONTEXT * GIB)
    if device.type not in COUNTING:
        return available // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) + held
    module = torch.get_device_module(device)
    free, total = module.mem_get_info(device)
    allowed = round(total * module.get_per_process_memory_fraction(device.index))
    return round(USABLE * min(free + held, allowed)) + round(CUDA_CONTEXT * GIB)


def spill(device: torch.device) -> str | None:
    """Return a warning with advice if a GPU's memory is so full that the system resorts to RAM; else None."""
    if not GPU_MEMORY_SPILLS or device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    used = max(total - free, torch.cuda.memory_reserved(device))
    if used < FULL * total:
        return None
    return (
        f"slow: the GPU's memory is full, {used / GIB:.1f} of {total / GIB:.1f} GiB, and Windows uses the far slower "
        "RAM for the rest. Close other programs, or train with less: --memory_budget, --gradient_checkpointing, a "
        "smaller --train_batch_size"
    )


def free_memory() -> None:
    """Return the memory of deleted models to the device and to the system."""
    gc.collect()
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        torch.get_device_module(device).empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # only glibc needs it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means that a device's memory did not suffice; on Apple's only its message shows it."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


@contextlib.contextmanager
def out_of_memory_advice(device: torch.device, resolution: int, batch_size: int | str, smaller: list[str]):
    """Turn torch's error into OutOfMemory with advice.

    Args:
        smaller: settings to try, the gentlest first (the levels below the present one, see memory_budget.py).
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        batch = {1: [], "auto": ["a number in place of --train_batch_size auto, smaller than what it chose"]}.get(
            batch_size, ["a smaller --train_batch_size with more --gradient_accumulation_steps"]
        )
        raise OutOfMemory(
            f"out of memory at {resolution} px, batch {batch_size}, peak {memory_gib(device):.1f} GiB ({error}). "
            f"Try one after the other: {'; '.join([*smaller, *batch, 'a smaller --resolution'])}."
        ) from error

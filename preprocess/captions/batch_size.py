"""Batch size of a captioner: doubled while memory allows, halved after a batch that did not fit.

It affects speed alone: in float32 the captions are equal, so no key of a caption contains it.
"""

from collections.abc import Callable

MEASURED = ("cuda", "xpu")  # devices that report their peak memory; ROCm's is called cuda too
MOST_ON_CPU = 8  # memory is not measured there, nor on Apple's GPUs
MOST_ON_GPU = 64
USED = 0.8  # most of the free memory, a guess; fragmentation and longer captions need the rest


def first_and_most(asked: int | None, device_type: str) -> tuple[int, int]:
    """Return the first and the largest batch size: both are `asked` if it is set, else the first is 1."""
    return (asked, asked) if asked else (1, MOST_ON_GPU if device_type in MEASURED else MOST_ON_CPU)


def after_fit(size: int, most: int, memory_share: float) -> int:
    """Return the batch size that follows a full batch that fitted.

    Args:
        memory_share: share of the previously free memory that the batch took; 0 where that is not measured.
    """
    return min(2 * size, most) if 2 * memory_share <= USED else size


def with_memory_share(work: Callable[[], list[str]], device) -> tuple[list[str], float]:
    """Return the result of `work` and its peak share of the free memory, 0 on devices that do not report it."""
    import torch

    if device.type not in MEASURED:
        return work(), 0.0
    memory = torch.get_device_module(device)
    before = memory.memory_allocated(device)
    free = memory.mem_get_info(device)[0] + memory.memory_reserved(device) - before
    memory.reset_peak_memory_stats(device)
    result = work()
    return result, (memory.max_memory_allocated(device) - before) / max(free, 1)

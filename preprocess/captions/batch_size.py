"""How many pictures a captioner gets at once: doubled while memory allows, halved where it did not. Knows no captioner.

Only speed depends on the size: in float32 the captions are equal, and so no key of a caption holds it.
"""

from collections.abc import Callable

MEASURED = ("cuda", "xpu")  # devices whose peak of memory is told; ROCm's is called cuda too
MOST_ON_CPU = 8  # memory is not measured there, nor on Apple's GPUs
MOST_ON_GPU = 64
USED = 0.8  # of the free memory, at most, by guess; longer captions than the last ones and fragments need the rest


def first_and_most(asked: int | None, device_type: str) -> tuple[int, int]:
    """Size of the first batch and of the largest: what a person asked for is both; None starts with one picture."""
    return (asked, asked) if asked else (1, MOST_ON_GPU if device_type in MEASURED else MOST_ON_CPU)


def after_fit(size: int, most: int, memory_share: float) -> int:
    """The size after a whole batch that fitted.

    Args:
        memory_share: what the batch took of the memory that was free before it; 0 where that is not measured.
    """
    return min(2 * size, most) if 2 * memory_share <= USED else size


def with_memory_share(work: Callable[[], list[str]], device) -> tuple[list[str], float]:
    """Return what `work` gives, and the share of the free memory that it took at its peak; 0 where nobody measures."""
    import torch

    if device.type not in MEASURED:
        return work(), 0.0
    memory = torch.get_device_module(device)
    before = memory.memory_allocated(device)
    free = memory.mem_get_info(device)[0] + memory.memory_reserved(device) - before
    memory.reset_peak_memory_stats(device)
    result = work()
    return result, (memory.max_memory_allocated(device) - before) / max(free, 1)

"""Checks of the device that trains: torch's access to it, its memory, and bf16."""

from __future__ import annotations

from collections.abc import Iterator

from sdxl_lora.doctor.findings import Finding
from sdxl_lora.graphics_cards import INSTALL, nvidia_cards, why_no_gpu

GIB = 2**30
SMALLEST = 6 * GIB  # the card of the smallest preset
MOSTLY_FREE = 0.8  # of a card's memory, if only the desktop uses some


def look_at_torch() -> Iterator[Finding]:
    """Check torch, and each device that it can use."""
    try:
        import torch
    except Exception as error:  # a missing library is an OSError, even on Windows
        yield Finding("torch", f"cannot be imported: {error}", f"install it again, as {INSTALL} says", stops=True)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    yield Finding("torch", f"{torch.__version__}, {build if torch.version.cuda or torch.version.hip else 'no CUDA'}")
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        text, remedy = why_no_gpu(torch)
        yield Finding("GPU", text, f"{remedy}; small bases train on the CPU, full ones with --allow_cpu", stops=True)
    elif device.type == "cuda":
        drivers = nvidia_cards()
        for number in range(torch.cuda.device_count()):
            yield from look_at_card(torch, number, drivers[number][1] if number < len(drivers) else "")
    else:
        yield Finding("GPU", f"{device.type}")
    if device is not None:
        yield from look_at_bfloat16(device)


def look_at_card(torch, number: int, driver: str) -> Iterator[Finding]:
    """Check an NVIDIA or AMD card that torch sees."""
    try:
        card = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        kernels = [int(name[3:]) for name in torch.cuda.get_arch_list() if name[:3] == "sm_" and name[3:].isdigit()]
    except RuntimeError as error:
        remedy = "check `nvidia-smi`; restart the machine after a driver update"
        yield Finding("GPU", f"{number} does not answer: {str(error).splitlines()[0]}", remedy, stops=True)
        return
    text = f"{number}: {card.name}, {total / GIB:.1f} GiB, {free / GIB:.1f} free{f', driver {driver}' * bool(driver)}"
    if kernels and not torch.version.hip and 10 * card.major + card.minor < min(kernels):
        text += f"; this torch has no kernels for its generation (sm_{card.major}{card.minor})"
        yield Finding("GPU", text, f"install a torch for an older CUDA, as {INSTALL} says, or use another card", True)
    elif total < SMALLEST:
        yield Finding("GPU", text, "little for SDXL: start from examples/vram_6gb.yaml")
    elif free < MOSTLY_FREE * total:
        yield Finding("GPU", text, "other programs hold its memory: close them, nvidia-smi lists them")
    else:
        yield Finding("GPU", text)


def look_at_bfloat16(device) -> Iterator[Finding]:
    from sdxl_lora.performance.compute import native_bfloat16

    if native_bfloat16(device):
        yield Finding("precision", "bf16 is native, --mixed_precision auto uses it")
    else:
        remedy = "leave --mixed_precision at auto, or give fp16; bf16 would be emulated and slow"
        yield Finding("precision", "bf16 is not native, --mixed_precision auto uses fp16", remedy)

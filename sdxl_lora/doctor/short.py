"""Short form of the doctor, a line or two for the start of a training."""

import sys
from pathlib import Path

import torch

from sdxl_lora.doctor.findings import Finding
from sdxl_lora.doctor.hardware import look_at_card
from sdxl_lora.doctor.software import look_at_packages
from sdxl_lora.doctor.surroundings import ROOM_FOR_A_RUN, look_at_folder


def in_short(device: torch.device, folder: Path) -> list[str]:
    """Return a line with device and output folder, and a line of the problems, if any."""
    if device.type == "cuda":
        on = list(look_at_card(torch, device.index or 0, ""))
    else:
        on = [Finding("GPU", "on the CPU" if device.type == "cpu" else device.type)]
    disk = list(look_at_folder("output", folder, "--output_dir", ROOM_FOR_A_RUN, stops=True))
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [f"Python {python}, torch {torch.__version__}; {on[0].text}; {disk[0].text}"]
    if odd := [finding.text for finding in (*look_at_packages(), *on, *disk) if finding.remedy]:
        lines.append(f"not as it should be: {'; '.join(odd)}. `python -m sdxl_lora.doctor` says what to do")
    return lines

"""Command lines of our trainer and a peer's script for the benchmarks: the same flags, as far as both know them.

The peer is diffusers' examples/text_to_image/train_text_to_image_lora_sdxl.py (it needs torchvision; PYTHONPATH may
name a folder that has it). Its path is given; nothing of it is part of this repository.
"""

import sys
from pathlib import Path

OURS = Path("train_sdxl_lora.py")


def our_flags(**common) -> list[str]:
    """Return our flags to train attention, as the peer does, unless `common` says otherwise."""
    return as_flags({"target_modules": "attention"} | common | {"report_to": "tensorboard"})


def peer_flags(**common) -> list[str]:
    return as_flags(common | {"caption_column": "text", "report_to": "tensorboard"})


def as_flags(values: dict) -> list[str]:
    """Return {"rank": 4, "center_crop": True} as --rank 4 --center_crop."""
    return [
        word
        for name, value in values.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def launch(script: str | Path, flags: list[str], precision: str = "no", processes: int = 1) -> list[str]:
    """Return a command for `accelerate launch` with all options set, so that no person's configuration counts."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", *(["--multi_gpu"] if processes > 1 else []),
        "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", precision,
        "--dynamo_backend", "no", str(script), *flags,
    ]  # fmt: skip

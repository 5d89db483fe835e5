"""Silences what libraries print about parts that are not used here (torchvision, CPU kernels), so that ours is read.

Call `quiet_libraries` before importing transformers, diffusers or peft. stdlib only.
"""

import logging
import os

from sdxl_lora.operating_system import print_any_name


def quiet_libraries() -> None:
    """Errors still show; a person who sets these variables keeps what they set."""
    print_any_name()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

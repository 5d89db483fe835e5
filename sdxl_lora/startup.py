"""Silences what libraries print about parts that are not used here (torchvision, CPU kernels), so that ours is read;
shows our warnings in a line, and what keeps a library from being imported.

Call `quiet_libraries` before importing transformers, diffusers or peft. stdlib only.
"""

import logging
import os
import sys
import warnings

from sdxl_lora.operating_system import print_any_name
from sdxl_lora.packages import explain_failed_imports


def quiet_libraries() -> None:
    """Errors still show; a person who sets these variables keeps what they set."""
    print_any_name()
    explain_failed_imports()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    as_python_shows_it = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if category is UserWarning:  # ours: for the person who trains, not for whoever mends the code
            print(f"warning: {message}", file=file or sys.stderr)
        else:
            as_python_shows_it(message, category, filename, lineno, file, line)

    warnings.showwarning = show

"""Quiet startup: silences library messages about unused parts (torchvision, CPU kernels) so that ours stand out;
prints our warnings on one line each and explains failed imports.

Call `quiet_libraries` before importing transformers, diffusers or peft. stdlib only.
"""

import logging
import os
import sys
import warnings

from sdxl_lora.operating_system import print_any_name
from sdxl_lora.packages import explain_failed_imports


def quiet_libraries() -> None:
    """Silence all library messages except errors; environment variables that are already set keep their values."""
    print_any_name()
    explain_failed_imports()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    as_python_shows_it = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if category is UserWarning:  # ours: addressed to users, not to developers
            print(f"warning: {message}", file=file or sys.stderr)
        else:
            as_python_shows_it(message, category, filename, lineno, file, line)

    warnings.showwarning = show

"""`sdxl-lora COMMAND ...` or `python -m sdxl_lora COMMAND ...`: every command of this project under one name.

    sdxl-lora train --train_data_dir data/cat --output_dir runs/cat

Each runs as with `python -m` and has its own --help. Imports no training code.
"""

import difflib
import runpy
import sys
from importlib import metadata

from sdxl_lora.packages import DISTRIBUTION

COMMANDS = {  # name: module that runs as a program, what it does
    "train": ("train_sdxl_lora", "train a LoRA"),
    "preprocess": ("preprocess", "photos to a captioned dataset"),
    "ui": ("webui", "the web page"),
    "doctor": ("sdxl_lora.doctor", "is this machine fit to train"),
    "tools": ("sdxl_lora.tools", "show, check, convert, merge LoRA files"),
    "select": ("sdxl_lora.select", "which checkpoint to keep, and at which strength"),
    "came_along": ("preprocess.came_along", "what a LoRA draws that no prompt asked for"),
    "checkpoints": ("sdxl_lora.run.checkpoints", "list a run's checkpoints, take a LoRA file out of one"),
    "demo": ("examples.demo", "train a small LoRA here, without a GPU or a download"),
}


def usage() -> str:
    """Return the list of commands, one a line."""
    lines = [f"  {name:12} {does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join(
        ["usage: sdxl-lora COMMAND ... (or --version)", "", *lines, "", "sdxl-lora COMMAND --help says more"]
    )


def main() -> int:
    """Run the command named on the command line; return its exit code, or 2 if it names none."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        return print_version()
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {name!r} is not a command{hint}\n\n{usage()}" if name else usage(), file=sys.stderr)
        return 2
    sys.argv = [f"sdxl-lora {name}", *arguments]
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    return 0


def print_version() -> int:
    """Print the installed version; return the exit code, 2 if the package is not installed."""
    try:
        print(metadata.version(DISTRIBUTION))
    except metadata.PackageNotFoundError:
        print(f"error: {DISTRIBUTION} is not installed, so no version is known: pip install -e .", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

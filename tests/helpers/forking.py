"""Processes forked from one that has imported all that a training and the page need, so that a start is quick.

multiprocessing has one such process for all contexts, so its imports are listed once, here.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.helpers.paths import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_sdxl_lora", "tests.helpers.page_imports", "tests.helpers.launch"])


def settle(log: Path, environment: Mapping[str, str]) -> None:
    """Set environment, working folder and `log` for the output of a process that was just forked."""
    os.environ.update(environment)
    os.chdir(ROOT)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


def leave(main: Callable[[], int]) -> None:
    """End the process with the code that `main` returns, as a program of its own does."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

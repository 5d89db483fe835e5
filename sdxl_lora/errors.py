"""Exceptions for errors that users can cause, each with the exit code of the program.

0 means done or stopped on request, 1 a bug; 130 and 143 are signals that came before the run could handle them.
"""

import sys
from collections.abc import Callable, Sequence


class ConfigError(ValueError):
    """A flag, YAML file or base model that cannot be used; `problems` holds its sentences one by one."""

    exit_code = 2

    def __init__(self, message: str, problems: Sequence[str] = ()):
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class DataError(ValueError):
    """Images or captions that cannot be used."""

    exit_code = 3


class CheckpointError(ValueError):
    """A checkpoint that is damaged, missing, or from another run."""

    exit_code = 4


class DiskError(OSError):
    """A file that could not be written whole."""

    exit_code = 5


class NonFiniteError(ArithmeticError):
    """NaN or infinity in a loss, a gradient or a latent."""

    exit_code = 6


class OutOfMemory(RuntimeError):
    """Not enough device memory; the message says what to change."""

    exit_code = 7


class LostProcessError(RuntimeError):
    """Another process of this run died or does not respond."""

    exit_code = 8


RUN_ERRORS = (ConfigError, DataError, CheckpointError, DiskError, NonFiniteError, OutOfMemory, LostProcessError)


def exit_code_of(do: Callable[[], None]) -> int:
    """Call `do`; return 0, or the exit code of one of RUN_ERRORS after printing it on one line to stderr."""
    try:
        do()
        return 0
    except RUN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


class Stopped(Exception):
    """The run stopped because someone asked it to; not a failure."""

    exit_code = 0

"""What a person can cause, as exceptions that carry the exit code the program ends with.

0 is done or stopped on request, 1 a bug, 130 and 143 signals that came before the run could take them.
"""

import sys
from collections.abc import Callable, Sequence


class ConfigError(ValueError):
    """A flag, a YAML file, or a base model that cannot be used; `problems` are its sentences one by one."""

    exit_code = 2

    def __init__(self, message: str, problems: Sequence[str] = ()):
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class DataError(ValueError):
    """Pictures or captions that cannot be used."""

    exit_code = 3


class CheckpointError(ValueError):
    """A checkpoint that is damaged, missing, or of another run."""

    exit_code = 4


class DiskError(OSError):
    """A file that could not be written whole."""

    exit_code = 5


class NonFiniteError(ArithmeticError):
    """NaN or infinity in a loss, a gradient or a latent."""

    exit_code = 6


class OutOfMemory(RuntimeError):
    """The device's memory does not suffice; says what to change."""

    exit_code = 7


class LostProcessError(RuntimeError):
    """Another process of this run died or does not answer."""

    exit_code = 8


RUN_ERRORS = (ConfigError, DataError, CheckpointError, DiskError, NonFiniteError, OutOfMemory, LostProcessError)


def exit_code_of(do: Callable[[], None]) -> int:
    """Do it; return 0, or the exit code of one of RUN_ERRORS, which is told in one line on stderr."""
    try:
        do()
        return 0
    except RUN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


class Stopped(Exception):
    """Someone asked the run to stop, and it did: not a failure."""

    exit_code = 0

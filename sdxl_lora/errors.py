"""What a person can cause, as exceptions that carry the exit code the program ends with.

0 is done or stopped on request, 1 a bug, 130 and 143 signals.
"""


class ConfigError(ValueError):
    """A flag, a YAML file, or a base model that cannot be used."""

    exit_code = 2


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


OUT_OF_MEMORY_EXIT_CODE = 7

"""Marks of parameters."""

import pytest


def slow(*values):
    """Return the values as parameters marked `slow`: variants of others that `make test` runs.

    A tuple is the arguments of one test.
    """
    arguments = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*of_test, marks=pytest.mark.slow) for of_test in arguments]

"""Content of pyproject.toml; tomllib is new in Python 3.11, and ruff's own reader is no library."""

from setuptools.config.pyprojecttoml import load_file

from tests.helpers.paths import ROOT


def read_pyproject() -> dict:
    return load_file(ROOT / "pyproject.toml")

"""Python and packages: what is installed, against requirements.txt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from sdxl_lora.doctor.findings import Finding

DISTRIBUTION = "sdxl-lora-trainer"  # the name in pyproject.toml
REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 14)  # as requires-python of pyproject.toml
INSTALL = "pip install -r requirements.txt"
OPTIONAL = {  # what a training does without, and what is lost then
    "bitsandbytes": "8-bit optimizers, base_precision nf4",
    "prodigyopt": "optimizer prodigy",
    "schedulefree": "schedule-free optimizers",
    "wandb": "report_to wandb",
    "trackio": "report_to trackio",
    "imagehash": "finding near duplicates in preprocess",
    "gradio": "the web page",
}


def look_at_python() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding("Python", f"{here} is too old", "make an environment with Python 3.10 to 3.14", stops=True)
    elif sys.version_info[:2] > NEWEST_PYTHON:
        yield Finding("Python", f"{here} is newer than what is tested", "if something fails, use Python 3.12")
    else:
        in_environment = sys.prefix != sys.base_prefix
        yield Finding("Python", f"{here}, {'in an environment of its own' if in_environment else 'no environment'}")


def look_at_packages(requirements: Path = REQUIREMENTS) -> Iterator[Finding]:
    """One finding for each package that is missing or of another version, or one for all."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("packages", "packaging is missing, as others may be", INSTALL, stops=True)
        return
    try:
        lines = pins(requirements)
    except OSError as error:
        yield Finding("packages", f"cannot read {requirements}: {error.strerror}", "run it in a checkout of the code")
        return
    odd = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            odd += package_problem(requirement)
    yield from odd or [Finding("packages", "as in requirements.txt")]


def pins(requirements: Path) -> list[str]:
    """Return the requirements of a checkout, or of the installed package where there is no checkout.

    Raises:
        OSError: there is neither.
    """
    try:
        text = requirements.read_text(encoding="utf-8")
    except FileNotFoundError:
        try:
            return requires(DISTRIBUTION) or []
        except PackageNotFoundError:
            pass
        raise
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def package_problem(requirement) -> list[Finding]:
    name = requirement.name
    try:
        here = version(name)
    except PackageNotFoundError:
        lost = OPTIONAL.get(name.lower())
        text = f"{name} is missing" + (f": no {lost}" if lost else "")
        return [Finding("packages", text, INSTALL, stops=lost is None)]
    if requirement.specifier.contains(here, prereleases=True):
        return []
    return [Finding("packages", f"{name} is {here}, requirements.txt has {requirement.specifier}", INSTALL)]


def look_at_torchvision() -> Iterator[Finding]:
    """Nothing here needs it, but transformers imports one that is installed."""
    try:
        here = version("torchvision")
    except PackageNotFoundError:
        return
    try:
        import_module("torchvision")
        yield Finding("torchvision", f"{here}, which is not needed and does no harm")
    except Exception as error:  # torch's own kinds among them
        text = f"{here} does not fit this torch: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        yield Finding("torchvision", text, "pip uninstall torchvision; nothing here needs it", stops=True)

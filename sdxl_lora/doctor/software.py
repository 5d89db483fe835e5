"""Checks of Python and the installed packages against requirements.txt."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from sdxl_lora.doctor.findings import Finding
from sdxl_lora.packages import (
    INSTALL,
    NOT_NEEDED,
    REQUIREMENTS,
    distribution_of,
    installed_version,
    remedy_for,
    requirements_here,
    unfitness,
)

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 14)  # as requires-python of pyproject.toml
OPTIONAL = {  # packages that a training can do without, and the features that need them
    "bitsandbytes": "8-bit optimizers, base_precision nf4",
    "prodigyopt": "optimizer prodigy",
    "prodigy-plus-schedule-free": "optimizer prodigy_plus_schedule_free",
    "schedulefree": "schedule-free optimizers",
    "pytorch-optimizer": "optimizers came and adopt",
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
    """Yield a finding for each package that is missing or of another version, or a single one if all is well."""
    try:
        wanted = requirements_here(requirements)
    except ImportError:
        yield Finding("packages", "packaging is missing, and others may be too", INSTALL, stops=True)
        return
    except OSError as error:
        yield Finding("packages", f"cannot read {requirements}: {error.strerror}", "run it in a checkout of the code")
        return
    odd = [finding for requirement in wanted for finding in package_problem(requirement)]
    yield from odd or [Finding("packages", "as in requirements.txt")]


def package_problem(requirement) -> list[Finding]:
    name = requirement.name
    if (here := installed_version(name)) is None:
        lost = OPTIONAL.get(name.lower())
        text = f"{name} is missing" + (f": no {lost}" if lost else "")
        return [Finding("packages", text, INSTALL, stops=lost is None)]
    if requirement.specifier.contains(here, prereleases=True):
        return []
    return [Finding("packages", f"{name} is {here}, requirements.txt asks for {requirement.specifier}", INSTALL)]


def look_at_neighbours() -> Iterator[Finding]:
    """Check packages that nothing here needs but that our libraries import where they are installed."""
    for name in (*NOT_NEEDED, "triton"):
        if (here := installed_version(name)) is None:
            continue
        try:
            import_module(name)
        except Exception as error:  # of any kind, torch's own too
            yield Finding(name, f"{here} {unfitness(name, error)}", remedy_for(name), stops=True)
            continue
        built_for, torch = torch_asked_for_by(name), installed_version("torch")
        if built_for is not None and torch is not None and not built_for.contains(torch, prereleases=True):
            yield Finding(name, f"{here} was built for torch{built_for}, here is {torch}", remedy_for(name))
        elif name in NOT_NEEDED:
            yield Finding(name, f"{here}, which is not needed and does no harm")


def torch_asked_for_by(name: str):
    """Return the torch versions that a package requires, a SpecifierSet; None where it does not say."""
    with contextlib.suppress(ImportError, PackageNotFoundError):
        from packaging.requirements import Requirement

        asked = map(Requirement, requires(distribution_of(name)) or [])
        return next((one.specifier for one in asked if one.name == "torch" and one.marker is None), None)
    return None


def look_at_bitsandbytes() -> Iterator[Finding]:
    """Check that bitsandbytes finds its library for this device, since it imports even without it."""
    if installed_version("bitsandbytes") is None:
        return
    remedy, lost = remedy_for("bitsandbytes"), OPTIONAL["bitsandbytes"]
    try:
        library = import_module("bitsandbytes.cextension").lib
    except Exception as error:
        yield Finding("bitsandbytes", f"{unfitness('bitsandbytes', error)}: no {lost}", remedy)
        return
    if type(library).__name__.startswith("ErrorHandler"):
        yield Finding("bitsandbytes", f"has no library that fits this torch and device: no {lost}", remedy)

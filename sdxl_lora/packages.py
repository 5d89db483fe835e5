"""Installed packages: the requirements, and remedies for failed imports.

Images of rented machines bring their own torchvision, xformers and others. With another torch these fail while
transformers and diffusers import them, far from the cause.
"""

from __future__ import annotations  # the doctor also runs on unsupported old Pythons

import contextlib
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "sdxl-lora-trainer"  # the name in pyproject.toml
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
INSTALL = "pip install -r requirements.txt"
PAGE = "docs/install.md"
OURS = {"sdxl_lora", "preprocess", "webui", "examples", "benchmarks", "tests", "docs", "train_sdxl_lora", "__main__"}
# Our libraries import these if they are installed, but nothing here needs them.
NOT_NEEDED = ("torchvision", "torchaudio", "xformers", "flash_attn", "deepspeed", "apex", "sageattention", "tensorflow")
OF_TORCH = ("torch", "triton")  # one build of torch brings its own triton
UNFIT = 2  # exit code, the same as of ConfigError


def pins(requirements: Path = REQUIREMENTS) -> list[str]:
    """Return the requirements of a checkout, or of the installed package without one.

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


def explain_failed_imports() -> None:
    """Make a failed import of an installed package end the program with one line and exit code 2."""
    as_python_shows_it = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        said = why_not_imported(error)
        if said is None:
            as_python_shows_it(kind, error, traceback)
            return
        print(f"error: {said}", file=sys.stderr, flush=True)
        raise SystemExit(UNFIT)  # allowed in a hook; sets the exit code

    sys.excepthook = show


def why_not_imported(error: BaseException) -> str | None:
    """Return the package that made an import fail and the command to fix it; None for any other error."""
    errors = list(causes_of(error)) if isinstance(error, Exception) else []  # Ctrl-C may come during an import
    if not any(is_of_import(each) for each in errors):
        return None
    blamed = list(dict.fromkeys(name for each in errors for name in packages_in(each)))
    if not blamed:
        return None
    name = next((name for name in blamed if name in NOT_NEEDED), None)
    name = name or next((name for name in blamed if is_other_version(name)), blamed[0])
    return f"{name_and_version(name)} {unfitness(name, errors[0])}: {remedy_for(name)}"


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, the first raised first."""
    before = error.__cause__ or error.__context__
    if before is not None and before is not error:
        yield from causes_of(before)
    yield error


def is_of_import(error: BaseException) -> bool:
    """Return whether an error arose while importing an installed package, or because one could not be imported."""
    if isinstance(error, ImportError) and error.name and error.name.split(".")[0] not in OURS:
        return True
    return any(is_body and name not in OURS for name, is_body in frames_of(error))


def packages_in(error: BaseException) -> Iterator[str]:
    """Yield the names of installed packages involved in an error, the likeliest first."""
    if isinstance(error, ImportError) and error.name:
        yield from [name for name in [error.name.split(".")[0]] if name not in OURS]
    yield from [name for name, _ in reversed(frames_of(error)) if name not in OURS]


def frames_of(error: BaseException) -> list[tuple[str, bool]]:
    """Return the top-level package of each frame, outermost first, and whether the frame is a module's body.

    Python's own modules are left out.
    """
    found, traceback = [], error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        name = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if name and name not in sys.stdlib_module_names:
            found.append((name, frame.f_code.co_name == "<module>"))
        traceback = traceback.tb_next
    return found


def unfitness(name: str, error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return "is missing"
    if name in NOT_NEEDED:
        return f"does not fit {name_and_version('torch')} ({first})"
    return f"cannot be imported ({first})"


def remedy_for(name: str) -> str:
    """Return the command that fixes a package that cannot be imported or has the wrong version."""
    if name in NOT_NEEDED:
        return f"pip uninstall {distribution_of(name)}; nothing here needs it"
    if name in OF_TORCH:
        return f"install torch again, as {PAGE} says, in an environment of its own"
    pinned = requirement_of(name)
    if pinned is not None and not is_other_version(name):
        return f"pip install --force-reinstall --no-deps {pinned.name}{pinned.specifier}"
    return f"{INSTALL}, in an environment of its own, as {PAGE} says"


def requirements_here(requirements: Path = REQUIREMENTS) -> list[Requirement]:
    """Return the requirements that apply to this Python and system.

    Raises:
        ImportError: packaging, which parses them, is missing. OSError: see `pins`.
    """
    from packaging.requirements import Requirement

    found = map(Requirement, pins(requirements))
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def requirement_of(name: str) -> Requirement | None:
    with contextlib.suppress(ImportError, OSError):
        return next((one for one in requirements_here() if one.name.lower() == distribution_of(name).lower()), None)
    return None


def is_other_version(name: str) -> bool:
    """Return whether the installed version of a package violates its requirement."""
    required, here = requirement_of(name), installed_version(name)
    return required is not None and here is not None and not required.specifier.contains(here, prereleases=True)


def distribution_of(name: str) -> str:
    """Return pip's name of a package that Python imports as `name`."""
    return {"flash_attn": "flash-attn", "PIL": "pillow", "yaml": "PyYAML", "imagehash": "ImageHash"}.get(name, name)


def installed_version(name: str) -> str | None:
    try:
        return version(distribution_of(name))
    except PackageNotFoundError:
        return None


def name_and_version(name: str) -> str:
    return f"{distribution_of(name)} {installed_version(name) or ''}".strip()

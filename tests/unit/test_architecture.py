"""The house: which package may import which, and how large a room may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APPLICATIONS = ("preprocess", "webui", "train_sdxl_lora")
FLOORS = [  # from the ground up: a package imports only packages below it
    ("errors", "rng", "fault_injection", "operating_system", "graphics_cards"),
    ("startup", "config"),
    ("io",),
    ("images", "lora.formats", "diffusion", "distributed"),
    ("folders", "models"),
    ("data", "performance", "sampling"),
    ("cache", "run", "tools", "doctor"),
    ("lora",),
    ("optimizers", "publish"),
    ("training",),
]
LONGEST_FILE = 300
MOST_MODULES = 15
LONG_FILES: set[str] = set()  # with the reason beside each


def package_of(module: str) -> str:
    """`lora.formats` of sdxl_lora.lora.formats.keys, `errors` of sdxl_lora.errors."""
    parts = module.split(".")[1:]
    if parts[:2] == ["lora", "formats"]:
        return "lora.formats"
    return parts[0] if parts else ""


def imports_of(path: Path) -> set[str]:
    """Names of modules, and of what is imported from them, anywhere in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def source_files() -> list[Path]:
    return [path for top in ("sdxl_lora", "preprocess", "webui") for path in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("package", [package for floor in FLOORS for package in floor])
def test_a_package_imports_only_packages_below_it(package):
    height = {name: level for level, floor in enumerate(FLOORS) for name in floor}
    for path in sorted((ROOT / "sdxl_lora").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if package_of(module) != package:
            continue
        for name in imports_of(path):
            assert name.split(".")[0] not in APPLICATIONS, f"{module} imports {name}"
            if name.startswith("sdxl_lora."):
                other = package_of(name)
                assert other == package or height[other] < height[package], f"{module} imports {name}"


def test_preprocess_and_the_page_know_only_what_is_below_them():
    for path in sorted((ROOT / "preprocess").rglob("*.py")):
        assert not any(name.startswith(("webui", "train_sdxl_lora")) for name in imports_of(path)), path


def test_every_package_has_its_floor():
    packages = {package_of(".".join(path.relative_to(ROOT).parts)) for path in (ROOT / "sdxl_lora").glob("*/*.py")}
    assert packages - {"ui"} <= {package for floor in FLOORS for package in floor}


def test_rooms_are_small():
    for path in source_files():
        if str(path.relative_to(ROOT)) not in LONG_FILES:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, path
    folders = {path.parent for path in source_files()}
    for folder in folders:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES, folder

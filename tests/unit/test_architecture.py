"""The house: which package may import which, and how large a room may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("sdxl_lora", "preprocess", "webui", "benchmarks", "examples")
APPLICATIONS = ("preprocess", "webui", "train_sdxl_lora")
FLOORS = [  # from the ground up: a package imports only packages below it
    ("errors", "rng", "fault_injection", "operating_system", "graphics_cards", "packages"),
    ("startup", "config"),
    ("io",),
    ("images", "lora.formats", "diffusion", "distributed"),
    ("folders", "models"),
    ("data", "performance", "sampling"),
    ("cache", "run", "tools", "doctor"),
    ("lora",),
    ("optimizers", "publish"),
    ("training",),
    ("select",),
]
PAGE_FLOORS = [
    ("server", "settings"),
    ("locale",),
    ("runs",),
    ("datasets", "figures"),
    ("widgets",),
    ("pages",),
]  # of webui, likewise
PREPROCESS_FLOORS = [
    ("jobs",),
    ("images", "sources"),
    ("captions",),
    ("output",),
    ("editing",),
    ("dataset", "dry_run"),
    ("__main__", "came_along"),
]
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
MOST_MODULES, MOST_METHODS = 15, 15
NO_OPENINGS = {"What", "How", "Of", "Where", "When", "Whether", "Who", "Why", "Which", "As", "So", "If", "In"}
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
    packages = [path for top in PACKAGES for path in sorted((ROOT / top).rglob("*.py"))]
    return [ROOT / "train_sdxl_lora.py", *packages]


def wrong_imports(top: str, floors: list[tuple[str, ...]], package: str) -> list[str]:
    """Where a package imports another that is not below it, or what stands above all of them."""
    height = {name: level for level, floor in enumerate(floors) for name in floor}
    wrong = []
    for path in sorted((ROOT / top).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if package_of(module) != package:
            continue
        for name in imports_of(path):
            other = package_of(name) if name.startswith(f"{top}.") else package
            if other != package and height.get(other, len(floors)) >= height[package]:
                wrong.append(f"{module} imports {name}")
    return wrong


@pytest.mark.parametrize("package", [package for floor in FLOORS for package in floor])
def test_a_package_imports_only_packages_below_it(package):
    assert wrong_imports("sdxl_lora", FLOORS, package) == []


def test_the_trainer_knows_no_application():
    for path in sorted((ROOT / "sdxl_lora").rglob("*.py")):
        assert not any(name.split(".")[0] in APPLICATIONS for name in imports_of(path)), path


@pytest.mark.parametrize("package", [package for floor in PAGE_FLOORS for package in floor])
def test_a_folder_of_the_page_imports_only_folders_below_it(package):
    assert wrong_imports("webui", PAGE_FLOORS, package) == []


@pytest.mark.parametrize("part", [part for floor in PREPROCESS_FLOORS for part in floor])
def test_a_part_of_preprocess_imports_only_parts_below_it(part):
    assert wrong_imports("preprocess", PREPROCESS_FLOORS, part) == []


def test_preprocess_and_the_page_know_only_what_is_below_them():
    for path in sorted((ROOT / "preprocess").rglob("*.py")):
        assert not any(name.startswith(("webui", "train_sdxl_lora")) for name in imports_of(path)), path


def test_every_package_has_its_floor():
    for top, floors in (("sdxl_lora", FLOORS), ("webui", PAGE_FLOORS)):
        packages = {package_of(".".join(path.relative_to(ROOT).parts)) for path in (ROOT / top).glob("*/*.py")}
        assert packages - {"ui"} <= {package for floor in floors for package in floor}


def test_rooms_are_small():
    for path in [*source_files(), *(ROOT / "tests").rglob("*.py")]:
        if str(path.relative_to(ROOT)) not in LONG_FILES:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, path
    for folder in {
        path.parent for path in source_files() if path.parent != ROOT / "benchmarks"
    }:  # scripts, with an index
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES, folder


def test_functions_are_short_and_classes_have_few_methods():
    for path in [*source_files(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{path}: {node.name} has {length} lines"
            elif isinstance(node, ast.ClassDef):
                methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
                assert len(methods) <= MOST_METHODS, f"{path}: {node.name} has {len(methods)} methods"


def test_docstrings_open_with_a_verb_or_a_noun():
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                assert text.split()[0] not in NO_OPENINGS, f"{path}: {text.splitlines()[0]}"

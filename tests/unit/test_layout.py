"""Layout of the tests."""

import ast

from tests.conftest import LONGEST
from tests.helpers.paths import ROOT


def imported_by(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_test_module_is_imported():
    """What two of them share lies in tests/helpers."""
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in imported_by(path)
        if any(part.startswith("test_") for part in name.split("."))
    }
    assert not found


def test_unit_tests_lie_where_their_modules_do():
    """tests/unit/io/test_memo.py tests sdxl_lora/io/memo.py; those of preprocess lie below tests/unit/preprocess."""
    unit = ROOT / "tests" / "unit"
    for path in unit.rglob("test_*.py"):
        folder, name = path.parent.relative_to(unit), path.stem.removeprefix("test_")
        if path.parent != unit:
            names = (name, f"{name}.py", f"__{name}__.py")
            tested = [ROOT / place / folder / one for place in ("", "sdxl_lora") for one in names]
            assert any(one.exists() for one in tested), path


def test_the_longest_files_are_there():
    stems = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(LONGEST) <= stems

"""How the tests are laid out."""

import ast

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

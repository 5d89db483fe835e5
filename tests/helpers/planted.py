"""Installed packages that do not work, in a folder of their own in front of all others."""

import os
import subprocess
import sys

from tests.helpers.paths import ROOT


def plant_package(folder, name, version, code, requires=None):
    """Write a package `name` that runs `code` on import, with metadata as pip writes it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"{code}\n", encoding="utf-8")
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name.replace('_', '-')}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requires}"] if requires else []
    (about / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_beside(folder, *arguments):
    """Run Python with the packages of `folder`; return (exit code, stderr)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr

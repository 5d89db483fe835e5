"""The package's own description: pins said once, one range of Pythons, and all files in what is installed."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sdxl_lora import packages
from sdxl_lora.doctor import software
from tests.helpers.paths import ROOT
from tests.helpers.pyproject import read_pyproject

PACKAGED = ("sdxl_lora", "preprocess", "webui", "examples", "accelerate_configs", "train_sdxl_lora.py")
NOT_INSTALLED = {"examples/shapes/README.md", "examples/shapes/samples.png"}  # to be read in a checkout


def requirements(name):
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as an installer would have it built, from a copy of what is tracked."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGED, "pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder / "dist")], cwd=folder, check=True, capture_output=True)
    [path] = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_all_files_are_installed(wheel):
    tracked = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGED
        for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert tracked - set(wheel.namelist()) == NOT_INSTALLED
    others = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert others <= tracked, "tests, benchmarks and docs stay in the checkout"


def test_the_wheel_asks_for_the_pins_of_the_requirements(wheel):
    [path] = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    described = Parser().parsestr(wheel.read(path).decode())
    asked = [Requirement(line) for line in described.get_all("Requires-Dist")]
    without_extra = {str(one) for one in asked if "extra" not in str(one.marker)}
    assert without_extra == {str(one) for one in requirements("requirements.txt")}
    assert described["Name"] == packages.DISTRIBUTION and described["License-Expression"] == "Apache-2.0"


def test_builds_of_torch_take_their_version_from_the_requirements():
    project = read_pyproject()
    extras = project["project"]["optional-dependencies"]
    builds = {source["extra"]: source["index"] for source in project["tool"]["uv"]["sources"]["torch"]}
    assert [{"extra": name} for name in builds] == project["tool"]["uv"]["conflicts"][0]
    for name, index in builds.items():
        assert "torch" in extras[name], "no version: that of requirements.txt holds"
        assert index in {one["name"] for one in project["tool"]["uv"]["index"] if one["explicit"]}


def test_pins_for_development_are_said_alike():
    group = {str(Requirement(line)) for line in read_pyproject()["dependency-groups"]["dev"]}
    assert group == {str(one) for one in requirements("requirements-dev.txt")}


def test_all_say_the_same_pythons():
    said = SpecifierSet(read_pyproject()["project"]["requires-python"].split(" #")[0])
    allowed = [minor for minor in range(30) if f"3.{minor}" in said]
    assert (software.OLDEST_PYTHON[1], software.NEWEST_PYTHON[1]) == (allowed[0], allowed[-1])
    words = f"3.{allowed[0]} to 3.{allowed[-1]}"
    for name in ("README.md", "Makefile", "docs/install.md", "docs/troubleshooting.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert set(re.findall(r"3\.\d+ to 3\.\d+", text)) == {words}, name
    assert f"(3, {allowed[0]}) <= v <= (3, {allowed[-1]})" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_without_a_checkout_the_installed_package_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "requires", lambda name: ["peft==0.0.1", 'pillow-heif==1; extra == "heic"'])
    [finding] = software.look_at_packages(tmp_path / "requirements.txt")
    assert finding.text == f"peft is {metadata.version('peft')}, requirements.txt asks for ==0.0.1"

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages, "requires", missing)
    [finding] = software.look_at_packages(tmp_path / "requirements.txt")
    assert "cannot read" in finding.text and finding.remedy


def test_types_are_checked_in_all_but_the_tests():
    checked = set(read_pyproject()["tool"]["mypy"]["files"])
    there = {path.relative_to(ROOT).parts[0] for path in (*ROOT.glob("*.py"), *ROOT.glob("[!.]*/**/*.py"))}
    assert checked == there - {"tests", "build"}

"""Each way to install that docs/install.md names gets the build of torch that its machine needs.

The commands are those of the page, carried out by uv for the system of each. The indexes are served here: they have
the names, versions and systems of PyPI's and PyTorch's packages, and nothing inside. So this says which package is
chosen, not that the real indexes have it; for PyPI's packages the slow test at the end asks for that.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import uv
from packaging.requirements import Requirement

from sdxl_lora.doctor.software import NEWEST_PYTHON, OLDEST_PYTHON
from tests.helpers.package_index import add_package, served
from tests.helpers.paths import ROOT
from tests.helpers.pyproject import read_pyproject

TORCHS_INDEX = "https://download.pytorch.org/whl/"
PYTHONS = [f"cp{number}-cp{number}" for number in (310, 311, 312, 313, 314)]
SYSTEMS = {"linux": "manylinux_2_28_x86_64", "windows": "win_amd64", "macos": "macosx_14_0_arm64"}
# The local version of torch 2.13 in each of PyTorch's indexes, its systems, and what it needs from the same index
BUILDS = {
    "cu130": ("cu130", ("linux", "windows"), None),
    "cu126": ("cu126", ("linux", "windows"), None),
    "rocm7.2": ("rocm7.2", ("linux",), ("triton-rocm", "3.7.1")),
    "xpu": ("xpu", ("linux", "windows"), ("triton-xpu", "3.7.2")),
    "cpu": ("cpu", ("linux", "windows"), None),
}
PYPI = None  # the build without a local version: CUDA 13 for Linux, Metal for macOS, no GPU for Windows
# heading of the page: systems, and the build that uv and that pip must end with
PLANS = {
    "Linux, NVIDIA": (("linux",), "cu130", PYPI),
    "Windows, NVIDIA": (("windows",), "cu130", "cu130"),
    "Older NVIDIA drivers and cards": (("linux", "windows"), "cu126", "cu126"),
    "AMD": (("linux",), "rocm7.2", "rocm7.2"),
    "Intel": (("linux", "windows"), "xpu", "xpu"),
    "Apple": (("macos",), PYPI, PYPI),
    "CPU only": (("linux", "windows"), "cpu", "cpu"),
}


def pins():
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


TORCH = next(str(one.specifier).removeprefix("==") for one in pins() if one.name == "torch")


def tags(systems):
    return [f"{python}-{SYSTEMS[system]}" for python in PYTHONS for system in systems]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """The address of all indexes: /pypi, and PyTorch's by their names."""
    folder = tmp_path_factory.mktemp("indexes")
    for pin in pins():
        version = str(pin.specifier).removeprefix("==")
        add_package(folder / "pypi", pin.name, version, tags(SYSTEMS) if pin.name == "torch" else ["py3-none-any"])
    for line in [*read_pyproject()["project"]["optional-dependencies"]["heic"]]:
        add_package(folder / "pypi", *line.split("=="))
    for line in map(Requirement, read_pyproject()["dependency-groups"]["dev"]):
        add_package(folder / "pypi", line.name, str(line.specifier).removeprefix("=="))
    for name, (local, systems, beside) in BUILDS.items():
        needs = ["==".join(beside)] if beside else []
        add_package(folder / name, "torch", f"{TORCH}+{local}", tags(systems), needs)
        if beside:
            add_package(folder / name, *beside, tags(systems))
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def project(indexes, tmp_path_factory):
    """A copy of what describes the package, with the indexes of this machine, and uv's lock of it for all systems."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("requirements.txt", "README.md", "LICENSE", "train_sdxl_lora.py"):
        shutil.copy(ROOT / name, folder)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert text.count(TORCHS_INDEX) == len(BUILDS)
    (folder / "pyproject.toml").write_text(text.replace(TORCHS_INDEX, f"{indexes}/"), encoding="utf-8")
    run_uv(indexes, folder, "lock", "--no-build-isolation")
    return folder


def run_uv(indexes, folder, *words, python=sys.executable):
    """What uv says; it knows no index but those of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    settings = {
        "UV_DEFAULT_INDEX": f"{indexes}/pypi", "UV_CACHE_DIR": str(folder / "cache"), "UV_PYTHON": str(python),
        "UV_PYTHON_DOWNLOADS": "never", "MACOSX_DEPLOYMENT_TARGET": "14.0",
    }  # fmt: skip
    if "--index-url" in words:
        del settings["UV_DEFAULT_INDEX"]  # which would win
    command = [uv.find_uv_bin(), *words]
    done = subprocess.run(command, cwd=folder, env={**kept, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def commands(heading):
    """The commands below a heading of the page: uv's, and pip's."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    section = re.search(rf"^### {re.escape(heading)}\n(.*?)^##", page, re.MULTILINE | re.DOTALL)[1]
    blocks = re.findall(r"^```\w+\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    [synced] = [line for line in lines if line[:2] == ["uv", "sync"]]
    return synced, [line for line in lines if line[:2] == ["pip", "install"]]


CASES = [pytest.param(name, system, id=f"{name}, {system}") for name, plan in PLANS.items() for system in plan[0]]


def test_the_page_has_no_other_plans():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (.+)$", page, re.MULTILINE) == list(PLANS)


@pytest.mark.parametrize(("heading", "system"), CASES)
def test_uv_takes_the_build_for_the_machine(indexes, project, heading, system):
    synced, _ = commands(heading)
    said = run_uv(
        indexes, project, *synced[1:], "--frozen", "--dry-run", "--no-install-project", "--python-platform", system
    )
    chosen = re.findall(r"torch==(\S+)", said)
    build = PLANS[heading][1]
    assert chosen == [f"{TORCH}+{build}" if build else TORCH], said
    if build and BUILDS[build][2]:
        assert "{}=={}".format(*BUILDS[build][2]) in said


@pytest.mark.parametrize(("heading", "system"), CASES)
def test_pip_ends_with_the_build_for_the_machine(indexes, tmp_path, heading, system):
    """What is installed first stays, although PyPI's torch would also be of the version that is pinned."""
    environment = tmp_path / ".venv"
    run_uv(indexes, tmp_path, "venv", str(environment))
    for line in commands(heading)[1]:
        words = [str(ROOT / word) if word == "requirements.txt" else word for word in line[2:]]
        words = [word.replace(TORCHS_INDEX, f"{indexes}/") for word in words]
        run_uv(indexes, tmp_path, "pip", "install", *words, "--python-platform", system, python=environment)
    found = (path.name.removesuffix(".dist-info").split("-") for path in environment.rglob("*.dist-info"))
    installed = {name.replace("_", "-").lower(): version for name, version in found}
    build = PLANS[heading][2]
    assert installed["torch"] == (f"{TORCH}+{build}" if build else TORCH)
    assert installed.keys() >= {pin.name.lower() for pin in pins()}


def test_two_builds_at_once_are_refused(indexes, project):
    with pytest.raises(AssertionError, match="incompatible"):
        run_uv(indexes, project, "sync", "--frozen", "--dry-run", "--extra", "cpu", "--extra", "cu130")


@pytest.mark.slow
@pytest.mark.parametrize("minor", [OLDEST_PYTHON[1], NEWEST_PYTHON[1]])
@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_28", "windows", "aarch64-apple-darwin"])
def test_every_pin_has_a_package(tmp_path, platform, minor):
    """By the package index itself: wheels alone, for the oldest and the newest Python."""
    wanted = ["--only-binary", ":all:", "--python-version", f"3.{minor}", "--python-platform", platform]
    command = [uv.find_uv_bin(), "pip", "compile", *wanted, "--no-cache", str(ROOT / "requirements.txt")]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if "Failed to fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0 and f"torch=={TORCH}" in done.stdout, done.stderr

"""Dockerfile and compose.yaml, as far as they can be checked without Docker.

What the image would hold is laid out in a folder, and the page is started there as CMD says and asked as HEALTHCHECK
says. No image is built: that the base image has what `apt-get` and `pip` ask for is not shown here.
"""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from tests.helpers.paths import ROOT
from tests.helpers.pyproject import read_pyproject
from tests.helpers.ui_server import free_port

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
PASSWORD = "long enough"


def instructions():
    """[(instruction, its text)] of the Dockerfile, with lines put together."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in lines.splitlines() if line.strip()]


def of(name):
    return [text.strip() for instruction, text in instructions() if instruction == name]


def command_of(text):
    return json.loads(text[text.index("[") :])


def copied():
    """{source: target} of every COPY."""
    return {source: words[-1] for words in map(str.split, of("COPY")) for source in words[:-1]}


def test_what_is_copied_is_there_and_not_ignored():
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines[0] == "*" and {line[1:] for line in lines if line.startswith("!")} == set(copied())
    for source, target in copied().items():
        assert (ROOT / source).exists() and target in ("./", source)
    left_out = [line for line in lines[1:] if not line.startswith("!")]
    for source in copied():
        for path in (ROOT / source).rglob("*.*"):
            name = path.relative_to(ROOT).as_posix()
            assert "__pycache__" in name or not any(fnmatch.fnmatch(name, pattern) for pattern in left_out)


def test_it_does_not_run_as_root_and_can_write_its_volumes():
    [user], [volumes] = of("USER"), of("VOLUME")
    made = " ".join(of("RUN"))
    assert user not in ("root", "0") and re.search(rf"useradd .*\b{user}\b", made)
    for folder in json.loads(volumes):
        assert re.search(rf"mkdir [^&]*{folder}\b", made) and re.search(rf"chown {user} [^&]*{folder}\b", made)
    order = [instruction for instruction, _ in instructions()]
    assert "RUN" not in order[order.index("USER") :], "packages are root's"


def test_python_and_torch_are_those_of_the_project():
    minor = int(re.fullmatch(r"python:3\.(\d+)-slim", of("FROM")[0])[1])
    assert 10 <= minor <= 14
    [index] = (text.split("=")[1] for text in of("ARG") if text.startswith("TORCH_INDEX"))
    known = {one["url"] for one in read_pyproject()["tool"]["uv"]["index"]}
    assert index in known
    for service in COMPOSE["services"].values():
        assert service["build"]["args"]["TORCH_INDEX"] == f"${{TORCH_INDEX:-{index}}}"
    [pinned] = (re.search(r"\$\((.*?)\)", text)[1] for text in of("RUN") if "TORCH_INDEX" in text)
    said = subprocess.run(["bash", "-c", pinned], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"torch==[\d.]+\n", said)


def test_compose_agrees_with_the_image():
    [port], page = of("EXPOSE"), COMPOSE["services"]["page"]
    [command], [health] = map(command_of, of("CMD")), map(command_of, of("HEALTHCHECK"))
    assert command[command.index("--port") + 1] == port and f", {port}," in health[-1]
    assert page["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert ":?" in page["environment"]["SDXL_LORA_UI_PASSWORD"], "compose refuses to start without one"
    for service in COMPOSE["services"].values():
        mounted = {volume.split(":")[1] for volume in service["volumes"]}
        assert mounted == set(json.loads(of("VOLUME")[0])) and not service.get("privileged")
        assert (ROOT / service["build"]["context"] / "Dockerfile").is_file()
    folders = dict(pair.split("=", 1) for pair in of("ENV")[0].split())
    for name in ("HF_HOME", "LORA_PROJECTS_DIR", "MODELS_DIR"):
        assert any(folders[name].startswith(volume) for volume in json.loads(of("VOLUME")[0]))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """What COPY puts into the image, and its folders; of the files of this machine nothing else."""
    folder = tmp_path_factory.mktemp("image")
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / "app" / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "app").mkdir(exist_ok=True)
            shutil.copy(ROOT / source, folder / "app" / source)
    return folder


def environment_in(image, **more):
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SDXL_LORA_UI_PASSWORD")}
    given = dict(pair.split("=", 1) for pair in of("ENV")[0].split())
    return kept | {name: f"{image}{value}" if value[0] == "/" else value for name, value in given.items()} | more


def here(command, port):
    """A command of the image for this machine's Python and a port that is free."""
    return [sys.executable, *(re.sub(r"\b7860\b", str(port), word) for word in command[1:])]


def test_the_page_starts_as_the_image_says_and_is_found_healthy(image):
    port = free_port()
    start, check = here(command_of(of("CMD")[0]), port), here(command_of(of("HEALTHCHECK")[0]), port)
    assert subprocess.run(check, capture_output=True).returncode != 0, "nothing is there yet"
    environment = environment_in(image, SDXL_LORA_UI_PASSWORD=PASSWORD)
    with open(image / "page.log", "w", encoding="utf-8") as log:
        page = subprocess.Popen(start, cwd=image / "app", env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            if is_healthy := subprocess.run(check, capture_output=True).returncode == 0:
                break
            assert page.poll() is None, (image / "page.log").read_text(encoding="utf-8")
            time.sleep(0.5)
        assert is_healthy, (image / "page.log").read_text(encoding="utf-8")
        assert all(subprocess.run(check, capture_output=True).returncode == 0 for _ in range(8)), "it is no guess"
        assert (image / "runs").is_dir(), "projects are in the volume"
    finally:
        page.terminate()
        page.wait()
    assert subprocess.run(check, capture_output=True).returncode != 0


def test_the_page_does_not_start_without_a_password(image):
    start = here(command_of(of("CMD")[0]), free_port())
    done = subprocess.run(start, cwd=image / "app", env=environment_in(image), capture_output=True, text=True)
    assert done.returncode == 2 and "set a password in SDXL_LORA_UI_PASSWORD" in done.stderr


@pytest.mark.slow
def test_the_commands_of_compose_run(image):
    words = COMPOSE["services"]["trainer"]["command"].replace("/runs", str(image / "runs")).split()
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=image / "app", env=environment_in(image), capture_output=True, text=True
    )
    assert done.returncode in (0, 2) and "would stop a training: " in done.stdout

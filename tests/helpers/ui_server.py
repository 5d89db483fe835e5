"""A real page in a process of its own, for tests that ask it over HTTP or through a browser."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml

from tests.helpers.paths import ROOT


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code > 0
    except httpx.TransportError:
        return False


class Server:
    """`python -m webui` with its projects in a folder; `url` answers once this is made."""

    def __init__(self, folder: Path, *arguments: str, settings: dict | None = None, **environment: str):
        self.projects = folder / "projects"
        self.log = folder / "page.log"
        self.settings = folder / "ui.yaml"
        self.settings.write_text(yaml.safe_dump({"LORA_PROJECTS_DIR": str(self.projects), **(settings or {})}))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.arguments, self.environment = arguments, {**os.environ, "TMPDIR": str(self.temporary), **environment}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "webui", "--port", str(self.port), "--settings", str(self.settings)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments], cwd=ROOT, stdout=log, stderr=log, env=self.environment
            )
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()
            if answers(self.url):
                return
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

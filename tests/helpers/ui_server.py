"""A real page in a process of its own, for tests over HTTP or through a browser."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import yaml

from tests.helpers.forking import CONTEXT, leave, settle
from tests.helpers.paths import ROOT
from tests.helpers.waiting import until
from webui.__main__ import main


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, verify=False).status_code > 0  # verifying reads all authorities each time
    except httpx.TransportError:
        return False


def _serve(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    settle(log, environment)
    tempfile.tempdir = None  # determined again, from the environment
    leave(lambda: main(arguments))


class Server:
    """The page with its projects in a folder; `url` answers once this is made.

    It is forked (see forking.py); with `of_its_own` it is `python -m webui`, which takes four times as long to start.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        settings: dict | None = None,
        of_its_own: bool = False,
        **environment: str,
    ):
        self.projects = folder / "projects"
        self.log = folder / "page.log"
        self.settings = folder / "ui.yaml"
        self.settings.write_text(yaml.safe_dump({"LORA_PROJECTS_DIR": str(self.projects), **(settings or {})}))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.arguments = ["--port", str(self.port), "--settings", str(self.settings), *arguments]
        self.environment = {**os.environ, "TMPDIR": str(self.temporary), **environment}
        self.of_its_own = of_its_own
        self.start()

    def start(self) -> None:
        if self.of_its_own:
            with open(self.log, "ab") as log:
                command = [sys.executable, "-m", "webui", *self.arguments]
                self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=self.environment)
        else:
            arguments = (self.arguments, self.log, self.environment)
            self.process = CONTEXT.Process(target=_serve, args=arguments, daemon=True)
            self.process.start()
        until(lambda: not self.is_up() or answers(self.url), seconds=300)
        assert self.is_up(), self.log.read_text()

    def is_up(self) -> bool:
        return (self.process.poll() if self.of_its_own else self.process.exitcode) is None

    def ended_by(self, number: int) -> int | None:
        """Send a signal, wait up to a minute for the page's end, and return its exit code."""
        os.kill(self.process.pid, number)
        until(lambda: not self.is_up(), seconds=60)
        return self.process.returncode if self.of_its_own else self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        (self.process.wait if self.of_its_own else self.process.join)()

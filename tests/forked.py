"""Real training processes, forked from one that has the imports behind it: a start costs a second, not ten.

`start` gives them the environment that a launcher gives, so two of them are what torchrun starts. They can be killed.
LIMIT_FILE_SIZE in the environment limits their files to that many bytes.
"""

import gc
import multiprocessing
import os
import resource
import socket
import sys
from pathlib import Path

from .conftest import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_sdxl_lora", "tests.forked"])


def _run(config, log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.chdir(ROOT)
    with open(log, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    import torch

    import train_sdxl_lora

    gc.freeze()  # else each of a run's two collections walks half a second through the imports
    torch.set_num_threads(1)
    if limit := environment.get("LIMIT_FILE_SIZE"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    code = train_sdxl_lora.main(config)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Launched:
    """One run in `world` processes; `log` holds what they print."""

    def __init__(self, config, log: Path, world: int = 1, **environment: str):
        self.log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
        self.processes = []
        for rank in range(world):
            launched = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            launched |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            arguments = (config, log, {**shared, **(launched if world > 1 else {})})
            process = CONTEXT.Process(target=_run, args=arguments)
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes of the processes by rank, negative for signals. AssertionError if one is still there."""
        for process in self.processes:
            process.join(seconds)
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, f"{len(hanging)} processes hang; they printed:\n{self.printed()}"
        return [process.exitcode for process in self.processes]

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def launch(config, log: Path, world: int = 1, **environment: str) -> tuple[list[int], str]:
    """Run to the end: (exit codes, what was printed)."""
    log.unlink(missing_ok=True)
    launched = Launched(config, log, world, **environment)
    return launched.wait(), launched.printed()

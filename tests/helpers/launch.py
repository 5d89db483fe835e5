"""Real training processes, forked (see forking.py): a start takes a second, not ten.

`Launched` sets the environment that a launcher such as torchrun sets. Its processes can be killed. LIMIT_FILE_SIZE in
the environment limits their files to that many bytes.
"""

import gc
import resource
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.helpers.forking import CONTEXT, leave, settle
from tests.helpers.machines import Machine, enter


def _run(config, log: Path, environment: dict[str, str], machine: Machine | None, first: Callable[[], object]) -> None:
    if machine:
        enter(machine)
    settle(log, environment)
    import torch

    import train_sdxl_lora

    gc.freeze()  # else each of a run's two collections spends half a second on the imports
    torch.set_num_threads(1)
    if limit := environment.get("LIMIT_FILE_SIZE"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    first()
    leave(lambda: train_sdxl_lora.main(config))


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


class Launched:
    """One run in `world_size` processes; `log` holds their output.

    With `machines`, one process on each of these. Each calls `first`, a function of a module, before it trains.
    """

    def __init__(
        self, config, log: Path, world_size: int = 1, machines: Sequence[Machine] = (), first=dict, **environment: str
    ):
        self.log, world_size = log, len(machines) or world_size
        main_address = machines[0].address if machines else "127.0.0.1"
        shared = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
        self.processes, port = [], free_port()
        for rank in range(world_size):
            launched = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            launched |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": main_address, "MASTER_PORT": port}
            if machines:
                launched |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": machines[rank].device}
            environment_here = {**shared, **(launched if world_size > 1 else {})}
            arguments = (config, log, environment_here, machines[rank] if machines else None, first)
            process = CONTEXT.Process(target=_run, args=arguments)
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 300) -> list[int]:
        """Return exit codes of the processes by rank, negative for signals. AssertionError if one still runs."""
        for process in self.processes:
            process.join(seconds)
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, f"{len(hanging)} processes hang; they printed:\n{self.printed()}"
        return [process.exitcode for process in self.processes]

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def launch(config, log: Path, world_size: int = 1, **more) -> tuple[list[int], str]:
    """Run to the end and return (exit codes, output). See `Launched`."""
    log.unlink(missing_ok=True)
    launched = Launched(config, log, world_size, **more)
    return launched.wait(), launched.printed()

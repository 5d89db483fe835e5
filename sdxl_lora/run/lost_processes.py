"""Messages that name the process of a run that is gone or silent."""

import contextlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from sdxl_lora.errors import LostProcessError
from sdxl_lora.operating_system import is_alive
from sdxl_lora.run.status import read_status


def lost_ranks(folder: Path, world_size: int, own_rank: int) -> str:
    """Return a message that names the processes that are gone, or else the one silent for longest, and its step.

    Processes of another machine can only be silent: their process numbers mean nothing here.
    """
    others = {rank: read_status(folder, rank) for rank in range(world_size) if rank != own_rank}
    here = {rank: status for rank, status in others.items() if status.get("host") == socket.gethostname()}
    for _ in range(10 if here else 0):  # a killed process closes its connections a moment before it is gone
        gone = [rank for rank, status in here.items() if not is_alive(status["pid"])]
        if gone:
            return ", ".join(f"rank {rank} is gone ({last_seen(others[rank])})" for rank in gone)
        time.sleep(0.2)
    silent = min(others, key=lambda rank: others[rank].get("heartbeat", 0))
    return f"rank {silent} does not answer ({last_seen(others[silent])})"


def last_seen(status: dict) -> str:
    return f"last seen at step {status.get('step', 0)} on {status.get('host', 'an unknown machine')}"


@contextlib.contextmanager
def explain_lost_ranks(accelerator, folder: Path, status: Mapping):
    """Turn the error of a collective into a LostProcessError that names the process that did not take part."""
    try:
        yield
    except RuntimeError as error:
        signs = (
            "gloo",
            "NCCL",
            "Connection closed by peer",
            "Connection reset by peer",
            "Timed out waiting",
            "SocketImpl",
        )
        if accelerator.num_processes == 1 or not any(sign in str(error) for sign in signs):
            raise
        lost = lost_ranks(folder, accelerator.num_processes, accelerator.process_index)
        raise LostProcessError(
            f"{lost}; rank {accelerator.process_index} ends at step {status['step']}. "
            f"The same command goes on from the newest checkpoint. ({str(error).strip().splitlines()[0]})"
        ) from error

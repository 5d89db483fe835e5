"""A run's status file as whoever looks at the run from outside reads it; run.py says what stands in it. No torch."""

import json
from pathlib import Path

import psutil


def status_path(folder: Path, rank: int = 0) -> Path:
    return folder / ("status.json" if rank == 0 else f"status-rank-{rank}.json")


def read_status(folder: Path, rank: int = 0) -> dict:
    """What a process's status file says; {} where there is none."""
    try:
        return json.loads(status_path(folder, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there and more than a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

"""Reading and writing of a run's status files; session.py lists their content. No torch."""

import json
from pathlib import Path

from sdxl_lora.io.file_system import write_whole


def status_path(folder: Path, rank: int = 0) -> Path:
    return folder / ("status.json" if rank == 0 else f"status-rank-{rank}.json")


def read_status(folder: Path, rank: int = 0) -> dict:
    """Return the content of a process's status file; {} where it is missing or damaged."""
    try:
        status = json.loads(status_path(folder, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    write_whole(path, text.encode(), flush=False)

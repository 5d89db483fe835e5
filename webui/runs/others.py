"""Trainings in the projects' folders that the page has not started: from a shell, or by a cluster. No gradio."""

import socket
from pathlib import Path

import psutil

from sdxl_lora.operating_system import is_alive
from sdxl_lora.run.status import read_status
from webui.runs.jobs import Jobs

AT_WORK = ("starting", "caching", "training", "sampling")


def runs_of_others(jobs: Jobs) -> list[Path]:
    """Folders of runs at work on this machine that no job of the page is at work on."""
    ours = {job.target for job in jobs.all() if job.state == "running"}
    found = (path.parent for path in jobs.folder.parent.glob("*/runs/*/status.json"))
    return sorted(run for run in found if str(run) not in ours and is_at_work(read_status(run)))


def is_at_work(status: dict) -> bool:
    """Whether the process that wrote the status is still there: another one under its number is younger than that."""
    here, pid, heartbeat = socket.gethostname(), status.get("pid"), status.get("heartbeat")
    if status.get("state") not in AT_WORK or status.get("host", here) != here:
        return False
    if not isinstance(pid, int) or not isinstance(heartbeat, int | float) or not is_alive(pid):
        return False
    try:
        return psutil.Process(pid).create_time() <= heartbeat
    except psutil.NoSuchProcess:
        return False

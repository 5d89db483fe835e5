"""Trainings in the projects' folders that the page has not started: from a shell or a cluster. No gradio."""

import socket
from pathlib import Path

import psutil

from sdxl_lora.operating_system import is_alive
from sdxl_lora.run.status import read_status
from webui.runs.jobs import Jobs

AT_WORK = ("starting", "caching", "training", "sampling")


def runs_of_others(jobs: Jobs) -> list[Path]:
    """Return the folders of runs that are at work on this machine without a job of the page."""
    ours = {job.target for job in jobs.all() if job.state == "running"}
    found = (path.parent for path in jobs.folder.parent.glob("*/runs/*/status.json"))
    return sorted(run for run in found if str(run) not in ours and is_at_work(read_status(run)))


def is_at_work(status: dict) -> bool:
    """Return whether the process that wrote the status still runs; a later one of the same id is younger than it."""
    here, pid, heartbeat = socket.gethostname(), status.get("pid"), status.get("heartbeat")
    if status.get("state") not in AT_WORK or status.get("host", here) != here:
        return False
    if not isinstance(pid, int) or not isinstance(heartbeat, int | float) or not is_alive(pid):
        return False
    try:
        return psutil.Process(pid).create_time() <= heartbeat
    except psutil.NoSuchProcess:
        return False

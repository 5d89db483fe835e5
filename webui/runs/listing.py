"""Runs on disk: which there are, their states and their files. Communicates with none. No gradio."""

import dataclasses
import re
import signal
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdxl_lora.config.names import DIFFUSERS_NAME
from sdxl_lora.operating_system import is_alive
from sdxl_lora.run.checkpoints import checkpoints
from sdxl_lora.run.status import read_status
from webui.runs.jobs import Job, Jobs
from webui.runs.launch import plain

SAMPLE = re.compile(r"step-(\d+)-prompt-(\d+)-image-(\d+)\.png")


@dataclasses.dataclass(frozen=True)
class RunState:
    """State of a run.

    Attributes:
        state: waiting, starting, caching, training, sampling, stopping, done, stopped, failed, killed, planned (by a
            dry run), cancelled or new.
        reason: why it ended, in the run's own words.
    """

    state: str
    step: int = 0
    reason: str = ""
    last_checkpoint: str | None = None

    @property
    def is_active(self) -> bool:
        return self.state in ("starting", "caching", "training", "sampling", "stopping")


def find_runs(projects: Path, jobs: Jobs) -> list[Path]:
    """Return the folders of runs, the newest first: those that have written, and those requested that have not.

    The latter wait for their turn, failed before their folder was made, or were cancelled as their preparation failed.
    """
    ages = {path.parent: last_change(path) for path in projects.glob("*/runs/*/status.json")}
    for job in jobs.all():
        if job.kind == "train" and (job.state != "cancelled" or failed_forerunner(jobs, job)):
            folder = Path(job.target)
            ages[folder] = max(ages.get(folder, 0.0), (job.ended or job.created) if job.is_over else time.time())
    return sorted(ages, key=lambda folder: (-ages[folder], folder.name))


def last_change(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def failed_forerunner(jobs: Jobs, job: Job) -> Job | None:
    """Return the job that this one waited for, if it failed."""
    forerunner = jobs.read(job.after) if job.after else None
    return forerunner if forerunner is not None and forerunner.is_over and forerunner.exit_code != 0 else None


def state_of(run: Path, jobs: Jobs) -> RunState:
    """Return a run's state from its status file, and from the page's job for it if there is one."""
    status = known_facts(read_status(run))
    job = jobs.newest("train", of=run)
    facts: dict[str, Any] = {
        "step": status.get("step") or 0,
        "reason": status.get("reason") or "",
        "last_checkpoint": status.get("last_checkpoint"),
    }
    state = status.get("state", "new")
    if job is not None and job.state == "waiting":
        return RunState("waiting", **facts)
    if job is not None and job.state == "running" and job.process() is not None:
        if jobs.is_stopping(job):
            return RunState("stopping", **facts)
        is_of_this_job = status.get("heartbeat", 0) >= (job.started or 0)
        if not is_of_this_job or state in ("done", "stopped", "failed"):
            state = "starting" if not is_of_this_job else state
        return RunState(state, **facts)
    if state in ("starting", "caching", "training", "sampling") and not is_alive(status.get("pid", 0)):
        state = "killed"
    if state == "new" and job is not None and job.state == "cancelled":
        state, forerunner = "cancelled", failed_forerunner(jobs, job)
        facts["reason"] = last_error(jobs, forerunner) if forerunner else ""
    if state == "new" and job is not None and job.state == "ended" and job.exit_code == 0:
        state = "planned"  # a dry run leaves only its output
    if job is not None and job.state == "ended" and job.exit_code and status.get("heartbeat", 0) < (job.started or 0):
        state, facts["reason"] = "failed", last_error(jobs, job)
    return RunState(state, **facts)


def known_facts(status: dict) -> dict:
    """Return the facts of a status file that the page uses and that have the right type.

    A person or another version may have written something else there.
    """
    types = {"step": int, "reason": str, "last_checkpoint": str, "state": str, "pid": int, "heartbeat": int | float}
    return {name: status[name] for name, kind in types.items() if isinstance(status.get(name), kind)}


EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)(:.*)?")
OF_LAUNCHERS = re.compile(r"(subprocess\.CalledProcessError|torch\.distributed\S*\.ChildFailedError)\b.*")
KILLED_BELOW = re.compile(r"died with <Signals\.\w+: (\d+)>")


def last_error(jobs: Jobs, job: Job) -> str:
    """Return why a job failed.

    That is the signal that ended it, else our programs' last error line, else the last exception that is no launcher's,
    else the parser's boxed message, else the last line.
    """
    lines = console_lines(jobs, job)
    below = next((match for line in reversed(lines) if (match := KILLED_BELOW.search(line))), None)
    if number := int(below[1]) if below else -min(0, job.exit_code or 0):
        return signal_words(number)
    said = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if EXCEPTION.fullmatch(line) and not OF_LAUNCHERS.fullmatch(line)]
    boxed = boxed_words(lines)
    rest = lines[-1:] or ["it ended without a message"]
    return (said[-1:] or raised[-1:] or boxed or rest)[-1]


def without_launchers(lines: list[str]) -> list[str]:
    """Return the output without the traceback in which a launcher reports that its program failed."""
    start = None
    for place, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            start = place
        elif OF_LAUNCHERS.match(line):
            return lines[: place if start is None else start]
        elif EXCEPTION.fullmatch(line):
            start = None
    return lines


def signal_words(number: int) -> str:
    name = signal.Signals(number).name if number in list(signal.Signals) else "unknown"
    if name == "SIGKILL":
        return "killed by signal 9 (SIGKILL): usually the machine was out of memory"
    return f"ended by signal {number} ({name})"


def boxed_words(lines: list[str]) -> list[str]:
    """Return the command line parser's message without the frame around it."""
    start = max((place for place, line in enumerate(lines) if line.startswith("\u256d")), default=None)
    if start is None:
        return []
    return [plain(" ".join(lines[start:]))]


def console_lines(jobs: Jobs, job: Job, most_bytes: int = 40_000) -> list[str]:
    """Return the end of a job's output: progress bars in their last state, no colours."""
    try:
        with open(jobs.folder_of(job.id) / "console.log", "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").split("\r")[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line]


def lora_files(folder: Path) -> list[Path]:
    """Return the LoRA files of a finished run or a checkpoint.

    Those for ComfyUI and A1111 come first, the run's own before -best and -recommended, then those for diffusers.
    """
    found = [path for path in sorted(folder.glob("*.safetensors")) if path.name != "lora_state.safetensors"]
    return sorted(found, key=lambda path: (path.name == DIFFUSERS_NAME, len(path.name)))


def stages(run: Path) -> dict[str, Path]:
    """Return folders that hold the LoRA, by name: the finished one first, then checkpoints, the newest first."""
    finished = {"final": run} if (run / DIFFUSERS_NAME).is_file() else {}
    return finished | {path.name: path for path in reversed(checkpoints(run))}


def samples_of(run: Path) -> dict[tuple[int, int], dict[int, Path]]:
    """Return sample images: by (prompt number, image number) the files by step."""
    folder = run / "samples"
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return {}
    just_now = time.time_ns() - changed < 2e9  # more may come within one tick of the disk's clock
    return samples_in(folder, time.time_ns() if just_now else changed)


@lru_cache(maxsize=16)
def samples_in(folder: Path, changed: int) -> dict[tuple[int, int], dict[int, Path]]:
    found: dict[tuple[int, int], dict[int, Path]] = {}
    for path in sorted(folder.glob("step-*.png")):
        if match := SAMPLE.fullmatch(path.name):
            step, prompt, image = map(int, match.groups())
            found.setdefault((prompt, image), {})[step] = path
    return dict(sorted(found.items()))


def has_run(folder: Path) -> bool:
    """Return whether a folder holds a run's progress, to resume or to lose."""
    return (folder / "events.jsonl").exists() or bool(checkpoints(folder))


def state_of_job(jobs: Jobs, job: Job) -> str:
    """Return waiting, running, stopping, done, stopped, failed or cancelled."""
    if job.state == "running":
        return "stopping" if jobs.is_stopping(job) else "running"
    if job.state == "ended":
        if jobs.is_stopping(job) and job.exit_code != 0:
            return "stopped"
        return "done" if job.exit_code == 0 else "failed"
    return job.state

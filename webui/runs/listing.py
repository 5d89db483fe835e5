"""Runs as they lie on the disk: which there are, how each stands, what it has left. Speaks to none. No gradio."""

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
    """
    Attributes:
        state: waiting, starting, caching, training, sampling, stopping, done, stopped, failed, killed, planned (by a
            dry run), or new.
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
    """Folders of runs, the newest first: those that have written, and those that were asked for and have not: they wait
    for their turn, failed before their folder was made, or never got there as a preparation failed."""
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
    """The job that this one waited for in vain."""
    forerunner = jobs.read(job.after) if job.after else None
    return forerunner if forerunner is not None and forerunner.is_over and forerunner.exit_code != 0 else None


def state_of(run: Path, jobs: Jobs) -> RunState:
    """Return a run's state from its status file, and from the job that runs it where the page has started it."""
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
        state = "planned"  # a dry run leaves only what it printed
    if job is not None and job.state == "ended" and job.exit_code and status.get("heartbeat", 0) < (job.started or 0):
        state, facts["reason"] = "failed", last_error(jobs, job)
    return RunState(state, **facts)


def known_facts(status: dict) -> dict:
    """What a status file says of what the page asks, each of its type: a person or another version may have written
    something else there."""
    types = {"step": int, "reason": str, "last_checkpoint": str, "state": str, "pid": int, "heartbeat": int | float}
    return {name: status[name] for name, kind in types.items() if isinstance(status.get(name), kind)}


EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)(:.*)?")
OF_LAUNCHERS = re.compile(r"(subprocess\.CalledProcessError|torch\.distributed\S*\.ChildFailedError)\b.*")
KILLED_BELOW = re.compile(r"died with <Signals\.\w+: (\d+)>")


def last_error(jobs: Jobs, job: Job) -> str:
    """Why a job failed: the signal that ended it, else the sentence that our programs end with, else the last exception
    that is no launcher's, else its last line."""
    lines = console_lines(jobs, job)
    below = next((match for line in reversed(lines) if (match := KILLED_BELOW.search(line))), None)
    if number := int(below[1]) if below else -min(0, job.exit_code or 0):
        return signal_words(number)
    said = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if EXCEPTION.fullmatch(line) and not OF_LAUNCHERS.fullmatch(line)]
    boxed = boxed_words(lines)
    rest = lines[-1:] or ["it ended without a word"]
    return (said[-1:] or raised[-1:] or boxed or rest)[-1]


def without_launchers(lines: list[str]) -> list[str]:
    """What was printed but for the traceback by which a launcher says that what it has launched failed."""
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
        return "killed by signal 9 (SIGKILL): as a rule the machine had no memory left"
    return f"ended by signal {number} ({name})"


def boxed_words(lines: list[str]) -> list[str]:
    """What the parser of the command line has to say of flags and files, without the frame that it draws around it."""
    start = max((place for place, line in enumerate(lines) if line.startswith("\u256d")), default=None)
    if start is None:
        return []
    return [plain(" ".join(lines[start:]))]


def console_lines(jobs: Jobs, job: Job, most_bytes: int = 40_000) -> list[str]:
    """The end of what a job has printed: progress bars as they stand now, no colours."""
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
    """The files of a finished run or of a checkpoint: for ComfyUI and A1111, the run's own before its -best and
    -recommended, then for diffusers."""
    found = [path for path in sorted(folder.glob("*.safetensors")) if path.name != "lora_state.safetensors"]
    return sorted(found, key=lambda path: (path.name == DIFFUSERS_NAME, len(path.name)))


def stages(run: Path) -> dict[str, Path]:
    """Folders that hold the LoRA as it was, by name: the finished one first, then checkpoints, the newest first."""
    finished = {"final": run} if (run / DIFFUSERS_NAME).is_file() else {}
    return finished | {path.name: path for path in reversed(checkpoints(run))}


def samples_of(run: Path) -> dict[tuple[int, int], dict[int, Path]]:
    """Sample pictures: by (prompt number, picture number) the files by step."""
    folder = run / "samples"
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return {}
    just_now = time.time_ns() - changed < 2e9  # more may come without the clock of the disk having moved
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
    """Return whether a run has left anything there to go on with or to lose."""
    return (folder / "events.jsonl").exists() or bool(checkpoints(folder))


def state_of_job(jobs: Jobs, job: Job) -> str:
    """waiting, running, stopping, done, stopped, failed or cancelled."""
    if job.state == "running":
        return "stopping" if jobs.is_stopping(job) else "running"
    if job.state == "ended":
        if jobs.is_stopping(job) and job.exit_code != 0:
            return "stopped"
        return "done" if job.exit_code == 0 else "failed"
    return job.state

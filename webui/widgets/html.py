"""HTML for runs and jobs: their states, images and logs."""

import re
import time
from html import escape
from pathlib import Path

from preprocess.editing.prepared import left_out_of
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.run.pace import duration
from webui.locale.i18n import in_page_words, say
from webui.runs.jobs import Job, Jobs
from webui.runs.listing import RunState, console_lines, last_error, state_of_job, without_launchers
from webui.runs.run_history import History, smoothed
from webui.widgets import templates

SHOWN_SAMPLE_STEPS = 6
SHOWN_LOG_LINES = 200
LOSS_STEPS = 400  # older steps weigh less than 1e-8 in the smoothed loss
CONSOLE = {"padding": False, "max_height": 352, "autoscroll": True}  # of an HTML that holds a log

KINDS = {
    "prepare": "Preparing {name}",
    "caption": "Captioning an image in {name}",
    "train": "Training {name}",
    "draw": "Drawing images with {name}",
    "select": "Comparing checkpoints of {name}",
    "tool": "Running a tool on {name}",
}


def words_for(job: Job) -> str:
    name = Path(job.target).name
    return say(KINDS[job.kind], name=name) if job.kind in KINDS else f"{job.kind} {name}"


def progress(name: str, state: RunState, history: History) -> str:
    """Return a card: name, state, bar, and the numbers of the last step."""
    has_loss = bool(history.steps) and "loss" in history.steps[-1]
    loss = smoothed([step["loss"] for step in history.steps[-LOSS_STEPS:]])[-1] if has_loss else None
    return templates.runs.progress(name, state, history, loss, history.seconds_per_step(), sentence(state, history))


def sentence(state: RunState, history: History) -> str:
    """Return the present activity in a sentence without jargon; "" for a run that is over or waits."""
    if state.state == "starting":
        return say("Loading the base model, before the first step.")
    if state.state == "caching":
        return say("Encoding all images once, before the first step.")
    if state.state == "sampling":
        return say("Drawing samples after step {step}; then it continues.", step=f"{state.step:,}")
    left = history.seconds_left()
    if state.state != "training" or left is None:
        return ""
    facts = {"step": f"{state.step:,}", "total": f"{history.total_steps:,}", "left": duration(left)}
    words = say("Step {step} of {total}: about {left} to go, including samples and saving.", **facts)
    if history.draws:
        words += " " + say("The last {count} images are drawn at the end.", count=history.draws)
    return words


def spoken(words: str, state: str, step: int, total: int) -> str:
    """Return a job's progress for screen readers; the text changes at every tenth and with the state alone."""
    tenths = f", {10 * (10 * step // total)} %" if total else ""
    return escape(f"{words}: {templates.state_words(state)}{tenths}")


def gallery(folder: Path, images: dict[tuple[int, int], dict[int, Path]], prompts: tuple[str, ...], seed: int) -> str:
    """Return a row for each prompt and seed, with a column for each of the last steps."""
    parts = {step: path.name.partition("-prompt")[0] for by_step in images.values() for step, path in by_step.items()}
    steps = {step: (say("step {step}", step=step), parts[step]) for step in sorted(parts, reverse=True)}
    return templates.runs.gallery(folder, images, prompts, seed, steps, SHOWN_SAMPLE_STEPS)


LEVELS = {"failed": "error", "stopped": "warning", "checkpoint": "good", "finished": "good", "samples": "good"}


def happened(history: History) -> str:
    """Return a run's events in chronological order, coloured by level."""
    events = list(history.messages)[-SHOWN_LOG_LINES:]
    times = [time.strftime("%H:%M:%S", time.localtime(event.get("time", 0))) for event in events]
    levels = [LEVELS.get(event["event"], "") for event in events]
    return templates.runs.log(list(zip(times, levels, map(words_of, events), strict=True)))


def console(lines: list[str]) -> str:
    """Return a job's output, coloured by level."""
    kept = without_launchers(lines)[-SHOWN_LOG_LINES:]
    return templates.runs.log([("", level_of(line), line) for line in kept])


def words_of(event: dict) -> str:
    """Return an event in the run's own words, without lists, and with names in place of paths."""
    if event["event"] == "message":
        return str(event.get("text", ""))
    facts = {name: value for name, value in event.items() if name not in ("time", "event")}
    plain = {name: value for name, value in facts.items() if not isinstance(value, list | dict)}
    names = {name: Path(value).name if str(value).startswith("/") else value for name, value in plain.items()}
    return f"{event['event']}: " + ", ".join(f"{name} {value}" for name, value in names.items())


def level_of(line: str) -> str:
    if re.search(r"^error|Error\b|^Traceback|^ERROR", line):
        return "error"
    return "warning" if re.search(r"warn|^W\d{4} ", line, re.IGNORECASE) else ""


def standing(jobs: Jobs, job: Job) -> str:
    """Return a job's state, with its last line of output, or why it failed."""
    state = state_of_job(jobs, job)
    newest = "".join(console_lines(jobs, job)[-1:]) if state == "running" else ""
    failure = last_error(jobs, job).removeprefix("error: ") if state == "failed" else ""
    return templates.runs.standing(state, newest, failure)


def job_card(jobs: Jobs, job: Job | None) -> str:
    """Return the card of a job of preparing or captioning."""
    if job is None:
        return ""
    state, kind, said = state_of_job(jobs, job), "", ""
    if state == "failed":
        kind, said = "failed", in_page_words(PreprocessConfig, last_error(jobs, job))
    elif state == "running":
        said = "".join(console_lines(jobs, job)[-1:])
    elif state == "done" and job.kind == "prepare":
        left_out, found = left_out_of(Path(job.target), job.started or 0)
        if left_out:
            kind = "partly"
            said = say("{count} of {found} images left out: see 2 · Dataset", count=left_out, found=found)
    return templates.runs.job(words_for(job), state, kind if kind == "partly" else "", kind, said)

"""What a run tells, as HTML: where it stands, its plots, its pictures, its log. Every text of others is escaped."""

import json
import re
import time
from html import escape
from pathlib import Path

from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.run.pace import duration
from webui.locale.i18n import in_page_words, say
from webui.runs.dataset_view import left_out_of
from webui.runs.jobs import Job, Jobs
from webui.runs.listing import RunState, console_lines, last_error, state_of_job, without_launchers
from webui.runs.run_history import History, smoothed
from webui.widgets.images import image_html

SHOWN_SAMPLE_STEPS = 6
SHOWN_LOG_LINES = 200
LOSS_STEPS = 400  # older ones weigh less than 1e-8 in the smoothed loss
CONSOLE = {"padding": False, "max_height": 352, "autoscroll": True}  # of an HTML that holds a log

STATES = {
    "new": "not started",
    "waiting": "waiting",
    "running": "running",
    "starting": "starting",
    "caching": "encoding images",
    "training": "training",
    "sampling": "drawing samples",
    "stopping": "stopping",
    "done": "done",
    "planned": "only planned",
    "stopped": "stopped",
    "failed": "failed",
    "killed": "ended",
    "cancelled": "cancelled",
}


KINDS = {
    "prepare": "Preparing {name}",
    "caption": "A new caption in {name}",
    "train": "Training {name}",
    "draw": "Drawing with {name}",
    "select": "Comparing checkpoints of {name}",
    "tool": "Running a tool on {name}",
}


def words_for(job: Job) -> str:
    name = Path(job.target).name
    return say(KINDS[job.kind], name=name) if job.kind in KINDS else f"{job.kind} {name}"


def pill(state: str, more: str = "") -> str:
    """A state of another version of the trainer is told in its own word."""
    words = say(STATES[state]) if state in STATES else state
    return f'<span class="pill {escape(f"{state} {more}".strip())}">{escape(words)}</span>'


def progress(name: str, state: RunState, history: History) -> str:
    """One card: name, state, bar, and the numbers of the last step."""
    total = history.total_steps
    last = history.steps[-1] if history.steps else {}
    facts = [(say("step"), f"{state.step} / {total}" if total else str(state.step))]
    if "epoch" in last:
        facts.append((say("epoch"), f"{last['epoch']:.1f}"))
    if "loss" in last:
        facts.append((say("loss"), short(smoothed([step["loss"] for step in history.steps[-LOSS_STEPS:]])[-1])))
    pace = history.seconds_per_step()
    if pace is not None:
        facts.append((say("speed"), f"{short(1 / pace)}/s" if 0 < pace < 1 else f"{short(pace)} s"))
    if last.get("memory_gib"):
        facts.append((say("memory"), f"{last['memory_gib']:.1f} GiB"))
    words = sentence(state, history)
    said = f'<p class="ending">{escape(words)}</p>' if words else ""
    numbers = "".join(f"<div><b>{escape(value)}</b>{escape(label)}</div>" for label, value in facts)
    return (
        f'<div class="card run" data-version="{history.version}">'
        f'<div class="head"><strong>{escape(name)}</strong>{pill(state.state)}</div>'
        f'{ending(state)}{said}{bar(name, state.step, total)}<div class="facts">{numbers}</div></div>'
    )


def sentence(state: RunState, history: History) -> str:
    """What it does at the moment, for who reads no numbers; "" for a run that is over or waits."""
    if state.state == "starting":
        return say("It reads the base model: the first step is to come.")
    if state.state == "caching":
        return say("It looks at all images once, before the first step.")
    if state.state == "sampling":
        return say("It draws samples after step {step}, and then goes on.", step=f"{state.step:,}")
    left = history.seconds_left()
    if state.state != "training" or left is None:
        return ""
    facts = {"step": f"{state.step:,}", "total": f"{history.total_steps:,}", "left": duration(left)}
    words = say("Step {step} of {total}: about {left} to go, samples and saving included.", **facts)
    if history.draws:
        words += " " + say("The last {count} images are drawn at the end.", count=history.draws)
    return words


def spoken(words: str, state: str, step: int, total: int) -> str:
    """How far a job is, for those who hear the page: another text only at every tenth, and as its state changes."""
    tenths = f", {10 * (10 * step // total)} %" if total else ""
    return escape(f"{words}: {say(STATES[state]) if state in STATES else state}{tenths}")


def short(number: float) -> str:
    """Three digits that count; small ones as 1e-4."""
    if number and abs(number) < 1e-3:
        mantissa, exponent = f"{number:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def bar(name: str, step: int, total: int) -> str:
    """How far a run is, `name` for those who do not see it."""
    share = 100 * min(1.0, step / total) if total else 0
    return (
        f'<div class="bar" role="progressbar" aria-label="{escape(name)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></div>'
    )


def plots(runs: list[str]) -> str:
    """Where plots.js draws the numbers of these runs, in one; more than one are told apart by their colours."""
    return f'<div class="charts" data-runs="{escape(json.dumps(runs))}"></div>'


def ending(state: RunState) -> str:
    """One sentence on how it ended, and where it would go on."""
    saved = state.last_checkpoint
    if state.state == "stopped" and saved:
        words = say("Stopped at step {step}, saved {saved}.", step=state.step, saved=saved)
    elif state.state == "stopped":
        words = say("Stopped before the first step; nothing had to be saved.")
    elif state.state == "stopping":
        words = say("It finishes its step and saves. Press once more to end it at once.")
    elif state.state == "killed" and saved:
        words = say("It ended without a word at step {step}; {saved} is there.", step=state.step, saved=saved)
    elif state.state == "killed":
        words = say("It ended without a word at step {step}; nothing was saved.", step=state.step)
    elif state.state == "failed":
        words = in_page_words(TrainConfig, state.reason) or say("It failed; see the log.")
    elif state.state == "planned":
        words = say("A dry run: nothing was trained. What it would do stands under What it prints.")
    elif state.state == "cancelled" and state.reason:
        reason = in_page_words(PreprocessConfig, state.reason)
        words = say("What it waited for failed: {reason}", reason=reason)
    else:
        return ""
    return f'<p class="ending {escape(state.state)}">{escape(words)}</p>'


def gallery(
    folder: Path,
    images: dict[tuple[int, int], dict[int, Path]],
    prompts: tuple[str, ...],
    seed: int,
) -> str:
    """A row for each prompt and seed, a column for each of the last steps, the newest first. An image opened from there
    leads to all other steps."""
    if not images:
        return f'<p class="empty">{escape(say("No samples yet. Give sample prompts before training."))}</p>'
    steps = sorted({step for by_step in images.values() for step in by_step}, reverse=True)
    names = {step: say("step {step}", step=step) for step in steps}
    parts = {step: path.name.partition("-prompt")[0] for by_step in images.values() for step, path in by_step.items()}
    head = "".join(f"<th>{escape(names[step])}</th>" for step in steps[:SHOWN_SAMPLE_STEPS])
    rows = []
    for (prompt, image), by_step in images.items():
        name = prompts[prompt] if prompt < len(prompts) else str(prompt)
        of_seed = say("seed {seed}", seed=seed + image)
        cells = "".join(
            f"<td>{image_html(by_step.get(step), f'{name}, {names[step]}')}</td>" for step in steps[:SHOWN_SAMPLE_STEPS]
        )
        pattern = folder / f"*-prompt-{prompt}-image-{image}.png"
        rows.append(
            f'<tr data-path="{escape(str(pattern))}" data-words="{escape(f"{name} · {of_seed}")}">'
            f"<th>{escape(name)}<small>{escape(of_seed)}</small></th>{cells}</tr>"
        )
    all_steps = escape(json.dumps([(names[step], parts[step]) for step in steps], ensure_ascii=False))
    older = ""
    if len(steps) > SHOWN_SAMPLE_STEPS:
        words = say("{count} steps in all: open an image, and go on with the arrow keys.", count=len(steps))
        older = f'<p class="hint">{escape(words)}</p>'
    table = f'<table class="grid" data-steps="{all_steps}"><tr><td></td>{head}</tr>{"".join(rows)}</table>'
    return f'{older}<div class="wide" tabindex="0">{table}</div>'


LEVELS = {"failed": "error", "stopped": "warning", "checkpoint": "good", "finished": "good", "samples": "good"}


def happened(history: History) -> str:
    """What a run has told, in the order of reading, coloured by level."""
    events = list(history.messages)[-SHOWN_LOG_LINES:]
    times = [time.strftime("%H:%M:%S", time.localtime(event.get("time", 0))) for event in events]
    levels = [LEVELS.get(event["event"], "") for event in events]
    return log_lines(list(zip(times, levels, map(words_of, events), strict=True)))


def console(lines: list[str]) -> str:
    """What a job has printed, likewise."""
    kept = without_launchers(lines)[-SHOWN_LOG_LINES:]
    return log_lines([("", level_of(line), line) for line in kept])


def log_lines(lines: list[tuple[str, str, str]]) -> str:
    if not lines:
        return f'<p class="empty">{escape(say("Nothing yet."))}</p>'
    shown = "".join(
        f'<li class="{level}"><time>{escape(when)}</time>{escape(words)}</li>' for when, level, words in lines
    )
    return f'<ol class="log">{shown}</ol>'


def words_of(event: dict) -> str:
    """An event in the run's own words, without lists, and with names in place of paths."""
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


def job_card(jobs: Jobs, job: Job | None) -> str:
    """How a job of preparing or captioning stands."""
    if job is None:
        return ""
    state = state_of_job(jobs, job)
    reason = in_page_words(PreprocessConfig, last_error(jobs, job)) if state == "failed" else ""
    said = f'<p class="ending failed">{escape(reason)}</p>' if reason else ""
    mark, left_out = pill(state), 0
    if state == "done" and job.kind == "prepare":
        left_out, found = left_out_of(Path(job.target), job.started or 0)
    if left_out:
        warning = say("{count} of {found} images left out: see 2 · Dataset", count=left_out, found=found)
        mark, said = pill(state, "partly"), f'<p class="ending partly">{escape(warning)}</p>'
    elif state == "running":
        said = f'<p class="ending">{escape("".join(console_lines(jobs, job)[-1:]))}</p>'
    words = escape(words_for(job))
    return f'<div class="card"><div class="head"><strong>{words}</strong>{mark}</div>{said}</div>'

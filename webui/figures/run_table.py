"""Table of all runs, and the comparison of some: settings that differ, newest images.

Only the ends of long files are read.
"""

import dataclasses
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sdxl_lora.config.fields import flat_fields
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.run.events import parse_event
from webui.figures.curves import finite
from webui.figures.upkeep import note_of
from webui.runs.context import Context, run_name
from webui.runs.listing import find_runs, last_change, samples_of, state_of
from webui.runs.run_history import History, history_of

TAIL = 16_384  # bytes at the end of events.jsonl over whose steps the loss is averaged
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
OF_ITSELF = ("output_dir", "output_name", "resume_from_checkpoint", "dry_run")  # these differ between any two runs


@dataclasses.dataclass(frozen=True)
class RunRow:
    """A run's row in the table.

    Attributes:
        changed: seconds since 1970; 0 for a run that has written nothing.
        loss: the mean over its last steps; None before the first.
    """

    name: str
    changed: float
    state: str
    step: int
    loss: float | None
    base: str
    note: str

    @property
    def date(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.changed)) if self.changed else ""


def run_rows(context: Context) -> list[RunRow]:
    """Return a row for each run, the newest first."""
    return [row_of(context, run) for run in find_runs(context.places.projects, context.jobs)]


def row_of(context: Context, run: Path) -> RunRow:
    state = state_of(run, context.jobs)
    base = str(settings_of(run).get("pretrained_model_name_or_path") or "")
    changed = last_change(run / "status.json")
    return RunRow(run_name(run), changed, state.state, state.step, loss_of(run), Path(base).name, note_of(run))


def settings_of(run: Path) -> dict[str, Any]:
    """Return the settings in a run's config.yaml; {} if it cannot be read."""
    path = run / "config.yaml"
    try:
        return _settings(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, yaml.YAMLError):
        return {}


@lru_cache(maxsize=512)
def _settings(path: Path, changed: int) -> dict[str, Any]:
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    return content if isinstance(content, dict) else {}


def loss_of(run: Path) -> float | None:
    path = run / "events.jsonl"
    try:
        return _loss(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=512)
def _loss(path: Path, changed: int) -> float | None:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        events = [event for line in file.read().split(b"\n") if (event := parse_event(line))]
    losses = [loss for event in events if event["event"] == "step" and (loss := finite(event.get("loss"))) is not None]
    return sum(losses) / len(losses) if losses else None


def differing(runs: list[Path]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs, in the order of the config, with each run's value."""
    fields = flat_fields(TrainConfig)
    defaults = {name: list(f.default) if isinstance(f.default, tuple) else f.default for name, f in fields.items()}
    settings = [settings_of(run) for run in runs]
    told = {name: [one.get(name, defaults[name]) for one in settings] for name in fields if name not in OF_ITSELF}
    return {name: values for name, values in told.items() if any(value != values[0] for value in values)}


def newest_samples(runs: list[Path]) -> dict[str, list[tuple[int, Path] | None]]:
    """Return, by prompt, the step and file of each run's newest sample; None for a run without one."""
    rows: dict[str, list[tuple[int, Path] | None]] = {}
    for place, run in enumerate(runs):
        prompts, _ = prompts_of(run, history_of(run))
        for (prompt, image), by_step in samples_of(run).items():
            if image == 0 and by_step:
                name = prompts[prompt] if prompt < len(prompts) else str(prompt)
                rows.setdefault(name, [None] * len(runs))[place] = (max(by_step), by_step[max(by_step)])
    return rows


def prompts_of(run: Path, history: History) -> tuple[tuple[str, ...], int]:
    """Return the prompts that a run draws, and the seed of the first image."""
    told = [event.get("prompts") for event in history.messages if event["event"] == "samples"]
    settings = settings_of(run)
    lists = (one for one in [*told[::-1], settings.get("validation_prompt")] if one and isinstance(one, list))
    seed = settings.get("seed")
    return tuple(map(str, next(lists, ()))), seed if isinstance(seed, int) else 0

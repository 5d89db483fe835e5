"""All runs in a table: when, how far, how well, on which base. Reads the ends of their files alone."""

import dataclasses
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sdxl_lora.run.events import parse_event
from webui.figures.curves import finite
from webui.figures.upkeep import note_of
from webui.runs.context import Context, run_name
from webui.runs.listing import find_runs, last_change, state_of

TAIL = 16_384  # bytes of events.jsonl whose steps the loss is the mean of
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


@dataclasses.dataclass(frozen=True)
class RunRow:
    """
    Attributes:
        changed: seconds since 1970; 0 for one that has written nothing.
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
    """The newest first."""
    return [row_of(context, run) for run in find_runs(context.places.projects, context.jobs)]


def row_of(context: Context, run: Path) -> RunRow:
    state = state_of(run, context.jobs)
    base = str(settings_of(run).get("pretrained_model_name_or_path") or "")
    changed = last_change(run / "status.json")
    return RunRow(run_name(run), changed, state.state, state.step, loss_of(run), Path(base).name, note_of(run))


def settings_of(run: Path) -> dict[str, Any]:
    """What stands in a run's config.yaml; nothing where it cannot be read."""
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

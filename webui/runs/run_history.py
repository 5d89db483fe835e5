"""A run's events.jsonl as numbers to plot and lines to show, read incrementally. No gradio."""

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from sdxl_lora.run.events import parse_event

KEPT_MESSAGES = 300
RATE_STEPS = 50  # number of last steps that the speed is taken from
SMOOTHING = 0.95  # of the moving average, after its beginning


@dataclass
class History:
    """Events that one file has told so far; `read` adds new ones."""

    path: Path
    steps: list[dict] = field(default_factory=list)
    validations: list[dict] = field(default_factory=list)
    messages: deque = field(default_factory=lambda: deque(maxlen=KEPT_MESSAGES))
    total_steps: int = 0
    draws: int = 0  # sample images drawn each time, also at the end
    version: int = 0  # grows with each event
    taken_back: int = 0  # number of times that steps were repeated
    _place: int = 0
    _inode: int = 0

    def read(self) -> "History":
        try:
            status, file = self.path.stat(), open(self.path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            if self._inode:  # deleted: a new run of this name has written nothing yet
                vars(self).update(vars(History(self.path)), version=self.version + 1)
            return self
        except OSError:
            return self
        if status.st_ino != self._inode or status.st_size < self._place:  # another file under the old name
            vars(self).update(vars(History(self.path)), _inode=status.st_ino, version=self.version + 1)
        with file:
            file.seek(self._place)
            *lines, _ = file.read().split(b"\n")
        for line in lines:
            self._place += len(line) + 1
            event = parse_event(line)
            if event and is_sound(event):
                self._take(event)
        return self

    def _take(self, event: dict) -> None:
        kind = event["event"]
        self.version += 1
        if kind == "step":
            self.taken_back += drop_from(self.steps, event["step"])
            self.steps.append(event)
        elif kind == "validation":
            self.taken_back += drop_from(self.validations, event["step"])
            self.validations.append(event)
        else:
            if kind == "started":
                self.total_steps, self.draws = event.get("total_steps", 0), event.get("draws", 0)
            self.messages.append(event)

    @property
    def token(self) -> str:
        """Return a token that changes when steps already sent become void, even for a restarted page."""
        return f"{self._inode}-{self.taken_back}"

    def seconds_per_step(self) -> float | None:
        """Return the median seconds of the last steps; None before the second step."""
        paces = sorted(
            (after["time"] - before["time"]) / (after["step"] - before["step"])
            for before, after in pairwise(self.steps[-RATE_STEPS:])
            if after["time"] >= before["time"]
        )
        return paces[len(paces) // 2] if paces else None  # the median ignores saves and samples between steps

    def seconds_left(self, now: float | None = None) -> float | None:
        """Return the seconds left at `now`, else at this moment; None if unknown."""
        last = self.steps[-1] if self.steps else {}
        if "seconds_left" in last:  # includes the samples and checkpoints to come
            left = last["seconds_left"] - ((time.time() if now is None else now) - last["time"])
            return left if left > 0 else None
        pace = self.seconds_per_step()
        return None if pace is None or not self.steps else pace * max(0, self.total_steps - self.steps[-1]["step"])


NUMBERS = (
    "time", "step", "total_steps", "draws", "loss", "epoch", "learning_rate", "memory_gib", "validation_loss",
    "seconds_left",
)  # fmt: skip
MOST_SECONDS = 1e11  # since 1970, still a valid date


def is_sound(event: dict) -> bool:
    """Return whether an event's numbers are valid: a line may be damaged, or of another version."""
    are_numbers = all(isinstance(event[name], int | float) for name in NUMBERS if event.get(name) is not None)
    needed = [event.get(name) for name in ("time", "step")] if event["event"] in ("step", "validation") else [0]
    are_there = are_numbers and all(number is not None and math.isfinite(number) for number in needed)
    return are_there and abs(event.get("time") or 0) < MOST_SECONDS


def drop_from(events: list[dict], step: int) -> bool:
    """Remove the events from a step on, which a resumed run does again; return whether there were any."""
    count = len(events)
    while events and events[-1]["step"] >= step:
        events.pop()
    return len(events) < count


def smoothed(values: list[float], keep: float = SMOOTHING) -> list[float]:
    """Return the exponential moving average with an unbiased beginning, as TensorBoard draws it."""
    result, average, weight = [], 0.0, 0.0
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(average / weight)
    return result


_histories: dict[Path, History] = {}
_reading = threading.Lock()


def history_of(run: Path) -> History:
    """Return this process' only History of the run, up to date."""
    with _reading:
        return _histories.setdefault(run, History(run / "events.jsonl")).read()

"""Pace of a training: its use of time, an estimate of the rest, and causes of slowness. No torch."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
RECENT = 50  # reports that determine the pace
STEPS_TO_TELL, SECONDS_TO_TELL = 10, 60  # until the estimate is reported, whichever comes first
SECONDS_TO_BLAME = 30  # of steps, before causes of slowness are reported
MUCH_WAITING, NO_WAITING, MUCH_ASIDE = 0.15, 0.03, 0.3  # shares of the time
EVALUATING = ("validation", "samples")
ADVICE = {
    "validation": "a smaller --validation_split, or a larger --validation_epochs",
    "samples": "fewer --num_validation_images or --validation_inference_steps, or a larger --validation_epochs",
    "saving": "a larger --checkpointing_steps, or a faster disk",
}


class ToCome(NamedTuple):
    """Work that remains for a training."""

    steps: int
    evaluations: int = 0
    checkpoints: int = 0


class Report(NamedTuple):
    """Number of steps, their seconds, and the part of these spent waiting for data and for the device."""

    steps: int
    seconds: float
    data: float
    device: float


class Pace:
    """Timer of a training's steps and of the work between them.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self._reports: deque[Report] = deque(maxlen=RECENT)
        self._is_warm = False
        self._aside: dict[str, float] = {}  # seconds of the last time
        self._said: set[str] = set()
        self.open(0, lambda step: ToCome(0))

    def open(
        self, step: int, to_come: Callable[[int], ToCome], data_advice: str = "", tells_host: bool = False
    ) -> None:
        """Begin the training, or resume it after `step` steps.

        Args:
            to_come: gives the work that remains once a step has trained, including that due after it.
            data_advice: advice for steps that wait for data.
            tells_host: the host waits for the device only within `waiting`.
        """
        self._step, self._to_come, self._opened = step, to_come, self.clock()
        self._data_advice, self._tells_host = data_advice, tells_host
        self.begin_steps()

    def begin_steps(self) -> None:
        """Start timing steps now; earlier time does not count."""
        self._since, self._waited = self.clock(), {"data": 0.0, "device": 0.0}

    @contextlib.contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Time work other than steps: validation, samples or saving. Work that fails does not count."""
        began = self.clock()
        yield
        self._aside[what] = self.clock() - began
        self._since += self._aside[what]

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the time as waiting of the steps for `data` or for the `device`."""
        began = self.clock()
        yield
        self._waited[what] += self.clock() - began

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, and count the time that the steps wait for them."""
        left, end = iter(items), object()
        while True:
            with self.waiting("data"):
                item = next(left, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def report(self, step: int) -> float:
        """Record that all steps up to `step` are done, and return the seconds since the last report."""
        seconds = self.clock() - self._since
        if len(self._reports) == 1 and not self._is_warm:  # the first steps of a process are the slowest
            self._reports.clear()
            self._is_warm = True
        self._reports.append(Report(step - self._step, seconds, self._waited["data"], self._waited["device"]))
        self._step = step
        self.begin_steps()
        return seconds

    @property
    def seconds_per_step(self) -> float:
        steps = sum(report.steps for report in self._reports)
        return sum(report.seconds for report in self._reports) / steps if steps else 0.0

    def _parts(self) -> dict[str, tuple[int, float | None]]:
        """Return count and seconds of each kind of work to come; None for seconds not timed yet."""
        to_come, known = self._to_come(self._step), self._aside
        evaluating = [known[what] for what in EVALUATING if what in known]
        return {
            "step": (to_come.steps, self.seconds_per_step),
            "evaluation": (to_come.evaluations, sum(evaluating) if evaluating else None),
            "checkpoint": (to_come.checkpoints, known.get("saving")),
        }

    def seconds_left(self) -> float:
        """Return the seconds to come, of steps and of all other work timed so far."""
        return sum(number * (seconds or 0.0) for number, seconds in self._parts().values())

    def news(self, gpu_memory: str | None = None) -> list[str]:
        """Return the new messages after a report, each only once: the estimate and causes of slowness.

        Args:
            gpu_memory: message if a full GPU makes the training slow.
        """
        timed = sum(report.steps for report in self._reports)
        is_late = self.clock() - self._opened >= SECONDS_TO_TELL
        is_time = is_late or (self._is_warm and timed >= STEPS_TO_TELL)
        lines = {"estimate": self.estimate()} if is_time else {}
        if gpu_memory:
            lines["memory"] = gpu_memory
        if sum(report.seconds for report in self._reports) >= SECONDS_TO_BLAME:
            lines |= self._causes()
        new = {what: line for what, line in lines.items() if line and what not in self._said}
        self._said |= set(new)
        return list(new.values())

    def estimate(self) -> str:
        """Return the estimate in words; "" where nothing is to come."""
        parts = []
        for name, (number, seconds) in self._parts().items():
            if number:
                time_of_one = "not timed yet" if seconds is None else f"of {short(seconds)}"
                parts.append(f"{number} {name}{'s' * (number > 1)} {time_of_one}")
        return f"about {duration(self.seconds_left())} to go: {', '.join(parts)}" if parts else ""

    def _causes(self) -> dict[str, str]:
        """Return messages about causes of slowness, by name."""
        causes = {}
        seconds = sum(report.seconds for report in self._reports)
        data, device = (sum(getattr(report, what) for report in self._reports) / seconds for what in ("data", "device"))
        if data >= MUCH_WAITING:
            causes["data"] = f"slow: {data:.0%} of a step's time is spent waiting for its images. {self._data_advice}"
        elif self._tells_host and device <= NO_WAITING:
            causes["host"] = (
                "slow: the GPU finishes before it gets more to do, this machine's processor is the slower one. "
                "--cuda_graphs if it is off, --compile or a larger --train_batch_size give it more at once"
            )
        parts, left = self._parts(), self.seconds_left()
        shares = {what: parts["evaluation"][0] * self._aside.get(what, 0.0) for what in EVALUATING}
        shares["saving"] = parts["checkpoint"][0] * self._aside.get("saving", 0.0)
        for what, share in shares.items():
            if left >= SECONDS_TO_TELL and share / left >= MUCH_ASIDE:
                causes[what] = (
                    f"slow: {share / left:.0%} of the remaining time is for {what}. To reduce it: {ADVICE[what]}"
                )
        return causes


def duration(seconds: float) -> str:
    """Return seconds in words: 3 h 05 min, 4 min 30 s, 12 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)

"""A run's numbers over its steps for the plots: only those that are new since the last request."""

import math
from collections.abc import Iterable
from typing import Any

from webui.runs.run_history import History

MOST_POINTS = 4000  # of a run that is sent whole: more than a screen can show
LEFT_OUT = ("event", "time", "step", "total_steps", "epoch", "seconds_left")


def curves(history: History, known: dict[str, Any]) -> dict[str, Any]:
    """Return the points that a plot has to add to those it has.

    Args:
        known: `token`, `step` and `validation` of the last answer; empty for the first one.
    Returns:
        `token`; `is_new` if all earlier points are void; `rows` of the steps and of the `validations`, each
        {"step": [..], name: [..]}; and the last `step` and `validation` in them.
    """
    is_new = known.get("token") != history.token
    since, validated = (0 if is_new else number(known.get(name)) for name in ("step", "validation"))
    steps = after(history.steps, since)
    validations = after(history.validations, validated)
    return {
        "token": history.token,
        "is_new": is_new,
        "step": steps[-1]["step"] if steps else since,
        "validation": validations[-1]["step"] if validations else validated,
        "rows": columns(thinned(steps)),
        "validations": columns(validations),
    }


def after(events: list[dict], step: int) -> list[dict]:
    """Return the events after a step; events are ordered by step."""
    count = 0
    while count < len(events) and events[-1 - count]["step"] > step:
        count += 1
    return events[len(events) - count :]


def thinned(events: list[dict]) -> list[dict]:
    """Return at most MOST_POINTS of the events, evenly spaced, with the last one among them."""
    stride = math.ceil(len(events) / MOST_POINTS)
    return events[::-1][:: stride or 1][::-1]


def columns(events: list[dict]) -> dict[str, list]:
    """Return the numbers of the events by name; None where one is missing or not finite."""
    names: Iterable[str] = dict.fromkeys(name for event in events for name in event if name not in LEFT_OUT)
    return {"step": [event["step"] for event in events]} | {
        name: [finite(event.get(name)) for event in events] for name in names
    }


def finite(value: Any) -> float | None:
    """Return the number in five digits, more than a plot shows; None if it is no finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(f"{value:.5g}") if is_number else None


def number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def answer(histories: dict[str, History], asked: dict[str, Any]) -> dict[str, dict]:
    """Return the curves of several runs by name; `asked` holds what the page knows of each."""
    return {name: curves(history, asked.get(name) or {}) for name, history in histories.items()}

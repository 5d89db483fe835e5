"""A run's numbers over its steps, as the plots draw them: only what is new since they were last asked for."""

import math
from collections.abc import Iterable
from typing import Any

from webui.runs.run_history import History

MOST_POINTS = 4000  # of a run that is sent whole: more than a screen shows
LEFT_OUT = ("event", "time", "step", "total_steps", "epoch", "seconds_left")


def curves(history: History, known: dict[str, Any]) -> dict[str, Any]:
    """What a plot has to add to what it knows.

    Args:
        known: `token`, `step` and `validation` of the last answer; empty for the first one.
    Returns:
        `token`, and `is_new` where all points so far are void; `rows` of the steps and of the `validations`, each
        {"step": [..], name: [..]}; and up to which `step` and `validation` they are.
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
    """The events behind a step; they are ordered by it."""
    count = 0
    while count < len(events) and events[-1 - count]["step"] > step:
        count += 1
    return events[len(events) - count :]


def thinned(events: list[dict]) -> list[dict]:
    """At most MOST_POINTS of them, evenly, the last one among them."""
    stride = math.ceil(len(events) / MOST_POINTS)
    return events[::-1][:: stride or 1][::-1]


def columns(events: list[dict]) -> dict[str, list]:
    """The numbers of the events by name; None where one is missing or not finite."""
    names: Iterable[str] = dict.fromkeys(name for event in events for name in event if name not in LEFT_OUT)
    return {"step": [event["step"] for event in events]} | {
        name: [finite(event.get(name)) for event in events] for name in names
    }


def finite(value: Any) -> float | None:
    """The number in five digits, which is more than a plot shows."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(f"{value:.5g}") if is_number else None


def number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def answer(histories: dict[str, History], asked: dict[str, Any]) -> dict[str, dict]:
    """The curves of several runs by the runs' names; `asked` holds for each what is known of it."""
    return {name: curves(history, asked.get(name) or {}) for name, history in histories.items()}

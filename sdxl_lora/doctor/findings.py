"""Findings of the doctor."""

from __future__ import annotations  # so that too old a Python can run this and be reported

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    topic: its subject. text: the state found. remedy: advice; "" where nothing is wrong.
    stops: it would end a training.
    """

    topic: str
    text: str
    remedy: str = ""
    stops: bool = False

    def lines(self) -> list[str]:
        """Return the finding as lines for a person."""
        mark = "STOP" if self.stops else "note" if self.remedy else "ok"
        remedy = [f"{'':20} -> {self.remedy}"] if self.remedy else []
        return [f"{mark:5}{self.topic:15} {' '.join(self.text.split())}", *remedy]

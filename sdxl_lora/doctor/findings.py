"""What the doctor says of one thing."""

from __future__ import annotations  # for Pythons that are too old, which it is to find out

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    topic: what. text: how it is. remedy: what to do about it; "" where it is as it should be.
    stops: a training would end because of it.
    """

    topic: str
    text: str
    remedy: str = ""
    stops: bool = False

    def lines(self) -> list[str]:
        """Return the findings as lines for a person."""
        mark = "STOP" if self.stops else "note" if self.remedy else "ok"
        remedy = [f"{'':20} -> {self.remedy}"] if self.remedy else []
        return [f"{mark:5}{self.topic:15} {' '.join(self.text.split())}", *remedy]

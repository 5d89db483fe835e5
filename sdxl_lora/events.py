"""A run's events.jsonl: one JSON object a line, with the time and what it is about. stdlib only.

What is written: started, step, message, checkpoint, samples, finished, failed.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path


class EventLog:
    """Appends events to a file; every line is on its way to the disk when `write` returns."""

    def __init__(self, path: Path):
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def write(self, event: str, **facts) -> None:
        """Append `{"time": seconds since 1970, "event": event, **facts}`."""
        line = {"time": round(time.time(), 3), "event": event, **facts}
        self.file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        self.file.flush()


def read_events(path: Path, event: str | None = None) -> Iterator[dict]:
    """The events of a file, or those of one kind. A last line that is still being written is left out."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                entry = json.loads(line)
                if event in (None, entry["event"]):
                    yield entry

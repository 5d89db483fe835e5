"""Events of a run in events.jsonl: one JSON object per line, with time, kind and facts. No torch.

    python -m sdxl_lora.run.events runs/cat        follow a run's events until it ends

Kinds: cached, started, step, message, checkpoint, samples, similarity, validation, best, finished, published, stopped,
failed.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sdxl_lora.operating_system import print_any_name


class EventLog:
    """Writer that appends events to a file; every line is with the system when `write` returns.

    Half a line at the file's end, left by a killed run, is ended first, so that no other line is lost.
    """

    def __init__(self, path: Path):
        self.file = open(path, "a+b", buffering=0)  # noqa: SIM115 - lives as long as the run
        self.is_new_line = not self.file.seek(0, os.SEEK_END)
        if not self.is_new_line:
            self.file.seek(-1, os.SEEK_END)
            self.is_new_line = self.file.read(1) == b"\n"

    def write(self, event: str, **facts) -> None:
        """Append `{"time": seconds since 1970, "event": event, **facts}`; a time among the facts wins.

        Raises:
            OSError: the disk is full; nothing of the line stays.
        """
        about = {"time": round(time.time(), 3), "event": event, **facts}
        line = json.dumps(about, ensure_ascii=False, default=str) + "\n"
        end = self.file.seek(0, os.SEEK_END)
        # A file name that is not UTF-8 holds lone surrogates, which JSON can only write as \udc..
        left = line.encode("utf-8", "backslashreplace")
        left = left if self.is_new_line else b"\n" + left
        try:
            while left:
                left = left[self.file.write(left) :]  # on a full disk it writes what fits first
        except OSError:
            self.file.truncate(end)
            raise
        self.is_new_line = True


def read_events(path: Path, event: str | None = None) -> Iterator[dict]:
    """Yield the events of a file, or those of one kind. Incomplete and damaged lines are left out."""
    with open(path, "rb") as file:
        for line in file:
            entry = parse_event(line)
            if entry is not None and event in (None, entry["event"]):
                yield entry


def follow_events(path: Path, seconds_between: float = 0.5, should_end: Callable[[], bool] = lambda: False):
    """Yield past and then new events of a file until `should_end`, after the last one."""
    rest = b""
    with open(path, "rb") as file:
        while True:
            ending = should_end()  # asked before reading, so that no event before the end is missed
            *lines, rest = (rest + file.read()).split(b"\n")
            yield from (entry for entry in map(parse_event, lines) if entry is not None)
            if ending:
                return
            time.sleep(seconds_between)


def parse_event(line: bytes) -> dict | None:
    """Return the event in a line; None if there is none."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("event"), str) else None


def has_ended(run_dir: Path) -> bool:
    """Return whether status.json says that the run is over."""
    try:
        state = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return state in ("done", "stopped", "failed")


def main() -> int:
    print_any_name()
    run_dir = Path(sys.argv[1]) if len(sys.argv) == 2 else None
    if run_dir is None or not (run_dir / "events.jsonl").is_file():
        print("usage: python -m sdxl_lora.run.events RUN_DIR (a folder with events.jsonl)", file=sys.stderr)
        return 2
    with contextlib.suppress(KeyboardInterrupt):
        for entry in follow_events(run_dir / "events.jsonl", should_end=lambda: has_ended(run_dir)):
            when = time.strftime("%H:%M:%S", time.localtime(entry.pop("time", 0)))
            print(when, entry.pop("event"), " ".join(f"{name}={value}" for name, value in entry.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

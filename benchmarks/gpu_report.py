"""Collect all tables that gpu.sh has measured on one page, with its trainings under a memory limit.

python -m benchmarks.gpu_report OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path
from statistics import median

from sdxl_lora.run.events import read_events

PAGE = "tables.md"


def main() -> None:
    folder = Path(sys.argv[1])
    page = report(folder)
    (folder / PAGE).write_text(page, encoding="utf-8")
    print(page)


def report(folder: Path) -> str:
    """Return the page with all results so far."""
    tables = [path for path in folder.glob("*.md") if path.name != PAGE]
    parts = [f"## {path.stem}\n\n{path.read_text(encoding='utf-8')}" for path in sorted(tables, key=modified)]
    runs = {path.parent for path in folder.glob("*/events.jsonl")}
    runs |= {
        path.with_suffix("")
        for path in folder.glob("*.json")
        if "peak_rss_gib" in json.loads(path.read_text(encoding="utf-8"))
    }
    lines = [
        "## Trainings within a memory limit",
        "",
        "| | limit GiB | reserved GiB | host GiB | steps | images/s | exit code | |",
        "|---|---|---|---|---|---|---|---|",
        *(row(run) for run in sorted(runs, key=ended)),
    ]
    return "\n".join([*parts, *lines]) + "\n"


def modified(path: Path) -> float:
    return path.stat().st_mtime


def observed(run: Path) -> Path:
    """Return the file that observed.py writes about a training's process."""
    return run.with_name(f"{run.name}.json")


def ended(run: Path) -> float:
    """Return the time at which its process ended; for one that did not, when its folder last changed."""
    return modified(observed(run) if observed(run).exists() else run)


def row(run: Path) -> str:
    """Return a training's row, from observed.py's file and its events."""
    file = observed(run)
    took = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    events = list(read_events(run / "events.jsonl")) if run.exists() else []  # a refused training has none
    steps = [event for event in events if event["event"] == "step"]
    pace = median(step["images_per_second"] for step in steps[len(steps) // 2 :]) if steps else None
    failed = [event["reason"] for event in events if event["event"] == "failed"]
    numbers = [
        took.get("cuda_limit_gib"),
        took.get("cuda_reserved_gib"),
        took.get("peak_rss_gib"),
        len(steps),
        pace,
        took.get("code"),
    ]
    shown = ["-" if number is None else f"{number:.3g}" for number in numbers]
    reason = " ".join(failed[-1].split())[:200] if failed else "" if took else "did not end"
    reason = reason.replace("|", "/")
    return f"| {run.name} | {' | '.join(shown)} | {reason} |"


if __name__ == "__main__":
    main()

"""Read the result of `python -m sdxl_lora.select`: the recommended checkpoint and strength, and why. Draws nothing."""

import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from webui.figures.curves import finite

FOLDER, JSON_NAME, GRID_NAME = "select", "select.json", "grid.png"  # in the run's folder, as in sdxl_lora/select
SHARES = ("learned", "leak", "prompt_lost")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A checkpoint at a strength; shares are from 0 to 1, None where not measured."""

    step: int
    strength: float
    score: float | None
    learned: float | None
    leak: float | None
    prompt_lost: float | None
    copies: int
    images: int  # per prompt; 0 in files of earlier versions


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """Result of a comparison.

    Attributes:
        cells: all that were compared, in the order of the file, without the base.
        chosen: one of them; None if none is recommended.
        notes: what was not measured or is left out, in the program's words.
    """

    cells: tuple[Cell, ...]
    chosen: Cell | None
    notes: tuple[str, ...]

    @property
    def best(self) -> Cell | None:
        """Return the cell with the highest score of those with the most images; None if none has one."""
        most = max((cell.images for cell in self.cells), default=0)
        scored = [cell for cell in self.cells if cell.score is not None and cell.images == most]
        return max(scored, key=lambda cell: cell.score or 0.0) if scored else None


def recommendation_of(run: Path) -> Recommendation | None:
    """Return a run's recommendation; None if there is none yet, or in the format of another version."""
    path = run / FOLDER / JSON_NAME
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=32)
def _read(path: Path, changed: int) -> Recommendation | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        cells = tuple(cell_of(cell) for cell in told["cells"] if cell["step"])
        chosen = told["recommended"]
        notes = tuple(map(str, [*told["not_measured"], *told["left_out"]]))
        named = (chosen["step"], chosen["strength"]) if chosen else None
        return Recommendation(cells, next((c for c in cells if (c.step, c.strength) == named), None), notes)
    except (ValueError, KeyError, TypeError):
        return None


def cell_of(told: dict[str, Any]) -> Cell:
    shares = {name: finite(told[name]) for name in ("score", *SHARES)}
    copies, images = len(told["copies"]), int(told.get("images_per_prompt", 0))
    return Cell(int(told["step"]), float(told["strength"]), copies=copies, images=images, **shares)

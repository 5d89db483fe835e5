"""The images that a choice compares, drawn once: what is there by the same parameters is kept, the rest is shared."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from sdxl_lora.fault_injection import fault_point
from sdxl_lora.io.file_system import write_whole
from sdxl_lora.sampling.generate import image_by, png_of, read_image
from sdxl_lora.select.choice import BASE, Choice, Drawing
from sdxl_lora.select.models import Painter


def missing_drawings(choice: Choice, folder: Path) -> list[Drawing]:
    """The images that are not there, not whole, or drawn by other parameters."""
    return [one for one in choice.drawings() if drawn(choice, one, folder) is None]


def drawn(choice: Choice, drawing: Drawing, folder: Path):
    """The image, None where it has yet to be drawn."""
    return image_by(read_image(drawing.path(folder)), choice.parameters(drawing))


def draw_missing(
    choice: Choice,
    missing: Sequence[Drawing],
    folder: Path,
    load: Callable[[], Painter],
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Draw this process's share of what is missing, and show how far it is and how long it will take.

    Args:
        missing: the same on every process, see `missing_drawings`.
        load: the models, which are not loaded where nothing is missing.
    """
    share = list(missing[rank::world_size])
    if not share:
        return
    folder.mkdir(parents=True, exist_ok=True)
    painter, candidates, put_on = load(), {one.step: one for one in choice.candidates}, None
    with tqdm(total=len(share), desc="drawing", unit="img", disable=rank > 0) as bar:
        for cell, drawings in groupby(share, key=lambda one: one.cell):
            if cell != BASE and cell.step != put_on:
                painter.put_on(candidates[cell.step])
                put_on = cell.step
            painter.set_strength(cell.strength)
            for drawing in drawings:
                fault_point("sample")
                image = painter.paint(choice.prompts[drawing.prompt], drawing.repeat)
                write_whole(drawing.path(folder), png_of(image, choice.parameters(drawing)))
                bar.update()

"""Drawing of a choice's images, shared among processes. An image with the same parameters is not drawn again."""

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
    """Return the images that are missing, damaged, or drawn with other parameters."""
    return [one for one in choice.drawings() if drawn(choice, one, folder) is None]


def drawn(choice: Choice, drawing: Drawing, folder: Path):
    """Return the image; None where it is still to be drawn."""
    return image_by(read_image(drawing.path(folder)), choice.parameters(drawing))


def draw_missing(
    choice: Choice,
    missing: Sequence[Drawing],
    folder: Path,
    load: Callable[[], Painter],
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Draw this process's share of the missing images, with a progress bar.

    Args:
        missing: the same on every process, see `missing_drawings`.
        load: loads the models; not called where nothing is missing.
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

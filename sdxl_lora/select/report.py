"""Report of a choice for people and programs: table.txt, select.json, grid.png. Draws and measures nothing."""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdxl_lora.io.file_system import write_whole
from sdxl_lora.run.status import replace_text
from sdxl_lora.sampling.generate import png_of, spread
from sdxl_lora.sampling.grid import fitted, image_grid
from sdxl_lora.select.choice import BASE, Cell, Choice
from sdxl_lora.select.scores import Nearest, Recommendation, Score, points

TABLE_NAME, JSON_NAME, GRID_NAME = "table.txt", "select.json", "grid.png"
SIDE, FRAME, LINE = 128, 6, 22  # pixels: an image in the grid, a frame, a line of text
FRAME_COLOUR = "#d62728"
SHARES = {"learned": "learned", "leak": "leak", "prompt_lost": "prompt lost"}
NUMBERS = {"likeness": "likeness", "likeness_without_trigger": "without", "prompt_match": "CLIP", "variety": "variety"}


def table(
    choice: Choice,
    scores: Mapping[Cell, Score],
    recommendation: Recommendation,
    left_out: Sequence[str],
    training_names: Sequence[str],
) -> str:
    """Return all numbers in aligned columns; `*` marks the recommended row, `-` a number that was not measured.

    Cells with fewer images than others were left behind in the first round.

    Args:
        left_out: the numbers that are missing, with reasons.
        training_names: names of the training images, to list those that were copied.
    """
    head = ["", "checkpoint", "strength", "images", "score", *SHARES.values(), *NUMBERS.values(), "nearest", "copies"]
    rows = [head]
    for cell, score in scores.items():
        rows.append(
            [
                "*" if cell == recommendation.cell else "",
                "base" if cell == BASE else str(cell.step),
                f"{cell.strength:g}",
                str(len(choice.drawings_of(cell))),
                percent(None if cell == BASE else score.total),
                *(percent(None if cell == BASE else getattr(score, name)) for name in SHARES),
                *(number(getattr(score, name)) for name in NUMBERS),
                number(score.nearest.correlation if score.nearest else None),
                "-" if cell == BASE else str(len(score.copies)),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", f"recommended: {recommendation.reason}" if recommendation.cell else recommendation.reason]
    lines += [f"not measured: {reason}" for reason in left_out]
    lines += [*choice.left_out, *copies_in_words(choice, scores, training_names)]
    return "\n".join(lines) + "\n"


def copies_in_words(choice: Choice, scores: Mapping[Cell, Score], training_names: Sequence[str]) -> list[str]:
    """Return a line for each image that copies a training image."""
    return [
        f"a copy: {drawing_name(choice, cell, one)} is {Path(training_names[one.training_image]).name} "
        f"(correlation {one.correlation:.3f})"
        for cell, score in scores.items()
        for one in score.copies
    ]


def drawing_name(choice: Choice, cell: Cell, one: Nearest) -> str:
    """Return the file name of an image of a cell."""
    return choice.drawings_of(cell)[one.image].path(Path()).name


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def as_json(
    choice: Choice,
    scores: Mapping[Cell, Score],
    recommendation: Recommendation,
    left_out: Sequence[str],
    training_names: Sequence[str],
    about: Mapping[str, object],
) -> str:
    """Return the content of `table` as JSON, with prompts and number of images."""

    def nearest(cell: Cell, one: Nearest) -> dict:
        name = Path(training_names[one.training_image]).name
        return {"image": drawing_name(choice, cell, one), "training_image": name, "correlation": one.correlation}

    cells = [
        {
            "step": cell.step,
            "strength": cell.strength,
            "images_per_prompt": choice.images_of(cell),
            "score": score.total,
            **{name: getattr(score, name) for name in (*SHARES, *NUMBERS)},
            "nearest": score.nearest and nearest(cell, score.nearest),
            "copies": [nearest(cell, one) for one in score.copies],
        }
        for cell, score in scores.items()
    ]
    recommended = recommendation.cell and {"step": recommendation.cell.step, "strength": recommendation.cell.strength}
    content = {
        **about,
        "recommended": recommended,
        "reason": recommendation.reason,
        "not_measured": list(left_out),
        "left_out": list(choice.left_out),
        "images_per_prompt": choice.images_per_prompt,
        "prompts": [asdict(prompt) for prompt in choice.prompts],
        "cells": cells,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def grid(
    choice: Choice,
    scores: Mapping[Cell, Score],
    recommended: Cell | None,
    image_of: Callable[[Cell, int], Image.Image | None],
) -> Image.Image:
    """Return a grid of checkpoints by strengths: a few images of each, the score below, the recommended cell framed.

    Args:
        image_of: gives a cell's image of a prompt.
    """
    shown = spread(list(range(len(choice.prompts))), 4)
    asked = [textwrap.shorten(choice.prompts[number].text, 60, placeholder="...") for number in shown]

    def tile(cell: Cell) -> Image.Image:
        images = [image_of(cell, number) for number in shown]
        total = scores[cell].total
        text = "" if cell == BASE or total is None else points(total)
        return tiled(images, text, cell == recommended)

    columns = [(f"strength {strength:g}", 1) for strength in choice.strengths]
    rows: list[list[Image.Image | None]]
    rows = [[tile(Cell(strength, one.step)) for strength in choice.strengths] for one in choice.candidates]
    rows.append([tile(BASE), *[None] * (len(choice.strengths) - 1)])
    labels = [
        f"step {one.step}" + (" (framed: recommended)" if recommended and recommended.step == one.step else "")
        for one in choice.candidates
    ]
    labels.append("the base alone; " + "; ".join(f"{place + 1}: {text}" for place, text in enumerate(asked)))
    return image_grid(columns, labels, rows, side=2 * SIDE + 4 * FRAME + LINE)


def tiled(images: Sequence[Image.Image | None], text: str, is_framed: bool) -> Image.Image:
    """Return up to four images in two columns, with a line of text below and optionally a frame around all."""
    columns = min(2, len(images))
    lines = -(-len(images) // 2)
    width = columns * SIDE + (columns + 1) * FRAME + 2 * FRAME
    tile = Image.new("RGB", (width, lines * (SIDE + FRAME) + FRAME + LINE + 2 * FRAME), "white")
    pen = ImageDraw.Draw(tile)
    for place, image in enumerate(images):
        corner = (2 * FRAME + place % 2 * (SIDE + FRAME), 2 * FRAME + place // 2 * (SIDE + FRAME))
        if image:
            tile.paste(fitted(image, SIDE), corner)
    where = (width // 2, tile.height - FRAME - LINE // 2)
    pen.text(where, text, fill="black", font=ImageFont.load_default(16), anchor="mm")
    if is_framed:
        pen.rectangle((0, 0, tile.width - 1, tile.height - 1), outline=FRAME_COLOUR, width=FRAME)
    return tile


def write_report(folder: Path, text: str, content: str, image: Image.Image) -> list[Path]:
    """Write the three files and return their paths."""
    paths = [folder / name for name in (TABLE_NAME, JSON_NAME, GRID_NAME)]
    replace_text(paths[0], text)
    replace_text(paths[1], content)
    write_whole(paths[2], png_of(image))
    return paths

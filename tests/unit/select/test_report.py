"""The table, the JSON and the grid say the same, and the recommended cell is marked in each."""

import json
from dataclasses import replace

import pytest
from PIL import Image, ImageColor

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.select.choice import BASE, Candidate, Cell, Choice
from sdxl_lora.select.report import FRAME_COLOUR, as_json, grid, table
from sdxl_lora.select.scores import Nearest, Recommendation, Score

MILD, STRONG = Cell(0.5, 500), Cell(1.0, 500)
SCORES = {
    BASE: Score(BASE, 0.0, 0.0, None, likeness=0.31),
    MILD: Score(MILD, 0.6, 0.1, None, likeness=0.5, nearest=Nearest(0, 1, 0.7)),
    STRONG: Score(STRONG, 0.9, 0.5, None, nearest=Nearest(1, 0, 0.99), copies=[Nearest(1, 0, 0.99)]),
}
FOUND = Recommendation(MILD, "checkpoint-500 at strength 0.5: score 50 points (learned 60 %, leak 10 %)")
NAMES = ["/somewhere/00.png", "/somewhere/01.png"]


@pytest.fixture
def choice(tmp_path):
    prompts = tuple(SamplePrompt(text, "", 64, 64, 0, 5.0, 2) for text in ("sks, a cat", "a cat"))
    return Choice(
        (Candidate(500, tmp_path / "x", "ab"),), (0.5, 1.0), prompts, ("sks",), 1, ("checkpoint-9 is left out",)
    )


def test_the_table_marks_the_recommended_row_and_says_what_is_missing(choice):
    lines = table(choice, SCORES, FOUND, ["prompt lost: no CLIP model was given"], NAMES).splitlines()
    heads = "checkpoint strength images score learned leak prompt lost likeness without CLIP variety nearest copies"
    assert " ".join(lines[0].split()) == heads
    assert lines[1].split()[:3] == ["base", "0", "2"] and "0.310" in lines[1]
    assert lines[2].split()[:5] == ["*", "500", "0.5", "2", "50.0"] and " 10.0 % " in lines[2] and " - " in lines[2]
    assert lines[3].split()[:4] == ["500", "1", "2", "40.0"] and lines[3].endswith("1")
    assert lines[5:] == [
        f"recommended: {FOUND.reason}",
        "not measured: prompt lost: no CLIP model was given",
        "checkpoint-9 is left out",
        "a copy: step-000500-strength-1-prompt-1-image-0.png is 00.png (correlation 0.990)",
    ]


def test_finalists_and_the_base_have_more_images(choice):
    final = replace(choice, finalists=(STRONG,), final_images=3)
    assert {cell: len(final.drawings_of(cell)) for cell in final.cells} == {BASE: 6, MILD: 2, STRONG: 6}
    columns = [line.replace("*", "").split()[2] for line in table(final, SCORES, FOUND, [], NAMES).splitlines()[1:4]]
    assert columns == ["6", "2", "6"]
    told = json.loads(as_json(final, SCORES, FOUND, [], NAMES, {}))
    assert [cell["images_per_prompt"] for cell in told["cells"]] == [3, 1, 3] and told["images_per_prompt"] == 1


def test_the_json_has_the_same_numbers_and_no_path_of_this_machine(choice):
    text = as_json(choice, SCORES, FOUND, ["prompt lost: no CLIP"], NAMES, {"similarity_model": "dino"})
    found = json.loads(text)
    assert found["recommended"] == {"step": 500, "strength": 0.5} and found["reason"] == FOUND.reason
    assert [cell["score"] for cell in found["cells"]] == pytest.approx([0.0, 0.5, 0.4])
    assert found["cells"][2]["copies"][0]["training_image"] == "00.png" and "/somewhere" not in text
    assert found["not_measured"] == ["prompt lost: no CLIP"] and found["similarity_model"] == "dino"


def test_only_the_recommended_cell_of_the_grid_is_framed(choice):
    colours = {MILD: "yellow", STRONG: "blue", BASE: "lime"}
    shown = []

    def image_of(cell, prompt):
        shown.append((cell, prompt))
        return Image.new("RGB", (64, 64), colours[cell])

    page = grid(choice, SCORES, MILD, image_of)
    assert sorted(shown) == sorted((cell, prompt) for cell in colours for prompt in (0, 1))
    counts = {colour: count for count, colour in page.getcolors(page.width * page.height)}
    assert all(counts[ImageColor.getrgb(colour)] == 2 * 128 * 128 for colour in colours.values())
    framed = [
        x
        for x in range(page.width)
        for y in range(page.height)
        if page.getpixel((x, y)) == ImageColor.getrgb(FRAME_COLOUR)
    ]
    yellow = [x for x in range(page.width) if page.getpixel((x, 100)) == (255, 255, 0)]
    assert min(framed) < min(yellow) and max(framed) > max(yellow) and max(framed) - min(framed) < 300
    nothing = grid(choice, SCORES, None, image_of)
    assert ImageColor.getrgb(FRAME_COLOUR) not in [
        colour for _, colour in nothing.getcolors(nothing.width * nothing.height)
    ]

"""A planted fault in drawings of the shapes world, whose contents the scorer reads; and what cannot be looked at."""

import json
import random
from dataclasses import asdict, replace

import pytest

from examples.shapes.concepts import concept_scenes, draw_object
from examples.shapes.scorer import read
from examples.shapes.world import draw, random_scene
from sdxl_lora.config.cli import to_yaml
from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.sampling.generate import png_of
from sdxl_lora.select.along import Drawn, report_on, split_prompts
from sdxl_lora.select.choice import BASE, Cell, Drawing

CELL = Cell(1.0, 8)
PROMPTS = [
    SamplePrompt("sks, a shape on a gray background", "", 64, 64, 0, 5.0, 2),
    SamplePrompt("a shape on a gray background", "", 64, 64, 0, 5.0, 2, is_without_trigger=True),
    SamplePrompt("a circle", "", 64, 64, 0, 5.0, 2),
]


def described(images):
    """The scorer's words; on a thumbnail of the training too, whatever its size."""
    readings = [read(image.resize((64, 64))) for image in images]
    return [frozenset({one.shape, one.colour, f"{one.background} background"}) for one in readings]


@pytest.fixture
def run(train_config, tmp_path):
    """A function from settings of what select has written to a run's config; its LoRA draws red stars when called."""

    def make(images=6, recommended=True):
        data = tmp_path / "data"
        data.mkdir()
        for index, scene in enumerate(concept_scenes("object", 4, seed=0)):
            draw_object(replace(scene, colour="red")).save(data / f"{index}.png")
            (data / f"{index}.txt").write_text("sks, a shape\n")
        (data / "README.md").write_text("---\ntrigger_word: sks\n---\n")
        config = train_config(train_data_dir=str(data))
        folder, rng = config.run_dir / "select" / "images", random.Random(0)
        folder.mkdir(parents=True)
        (config.run_dir / "config.yaml").write_text(to_yaml(config))
        for cell in (BASE, CELL):
            for prompt in range(len(PROMPTS)):
                for repeat in range(images):
                    colour = ("blue", "green", "yellow")[repeat % 3]
                    scene = random_scene(rng, combination=("circle", colour, "gray"))
                    is_star = cell == CELL and prompt == 0
                    image = draw_object(replace(scene, colour="red")) if is_star else draw(scene)
                    Drawing(cell, prompt, repeat).path(folder).write_bytes(png_of(image))
        content = {
            "recommended": {"step": CELL.step, "strength": CELL.strength} if recommended else None,
            "images_per_prompt": images,
            "prompts": [asdict(prompt) for prompt in PROMPTS],
            "cells": [{"step": cell.step, "strength": cell.strength} for cell in (BASE, CELL)],
        }
        (folder.parent / "select.json").write_text(json.dumps(content))
        return config

    return make


def test_a_colour_that_came_along_is_found_with_its_percent(run):
    config = run()
    text, paths = report_on(config, described)
    assert text.startswith("checkpoint-8 at strength 1, 6 images with the trigger word\n")
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in text.splitlines()[3:]}
    assert set(lines) == {"red", "star"}, "the background was asked for, and the base's colours are not red"
    assert lines["red"] == "red 100 % 0 % 0 % 0 % 100 %"
    assert paths[0].read_text() == text
    found = json.loads(paths[1].read_text())
    assert [one["word"] for one in found["came_along"]] == ["red", "star"]
    assert found["words"]["step-000008-strength-1-prompt-0-image-0.png"] == ["gray background", "red", "star"]
    assert len(found["words"]) == 4 * 6 and len(found["training_words"]) == 4
    assert not any("prompt-2" in name for name in found["words"]), "a prompt of its own says nothing of the other"


def test_prompts_are_compared_with_themselves_without_the_trigger_word():
    assert split_prompts(PROMPTS, ["sks"]) == ([0], [1])
    assert split_prompts(PROMPTS, []) == ([0, 1, 2], [])


def test_what_cannot_be_looked_at_is_refused_with_what_to_do(run, train_config):
    with pytest.raises(ConfigError, match=r"there is no .*select.json: run `python -m sdxl_lora.select"):
        Drawn(train_config())
    config = run(recommended=False)
    with pytest.raises(
        ConfigError, match="recommends nothing: give --step and --strength; these were drawn: checkpoint-8 at"
    ):
        report_on(config, described)
    with pytest.raises(
        ConfigError, match=r"checkpoint-8 at strength 0\.5 was not drawn; these were: checkpoint-8 at st"
    ):
        report_on(config, described, 8, 0.5)
    with pytest.raises(ConfigError, match="the base alone was not drawn"):
        report_on(config, described, 0, 0.0)
    Drawing(CELL, 0, 1).path(config.run_dir / "select" / "images").unlink()
    with pytest.raises(DataError, match=r"prompt-0-image-1\.png is gone or damaged"):
        report_on(config, described, 8, 1.0)
    (config.run_dir / "select" / "select.json").write_text("{")
    with pytest.raises(ConfigError, match=r"select\.json cannot be read"):
        report_on(config, described)
    assert not (config.run_dir / "select" / "came_along.txt").exists()


def test_too_few_images_to_tell_are_refused(run):
    with pytest.raises(ConfigError, match=r"there are 4 images with the trigger word.*draw at least 5"):
        Drawn(run(images=4))

"""The command with a real tagger at tiny size; what it finds is what that tagger says of the images."""

import json
import sys
from dataclasses import asdict

import pytest
from PIL import Image

from preprocess import came_along
from preprocess.came_along import main
from preprocess.captions.tagger import Tagger
from sdxl_lora.config.cli import to_yaml
from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.sections.preprocess import TaggerConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.sampling.generate import png_of
from sdxl_lora.select.choice import BASE, Cell, Drawing
from tests.helpers.taggers import save_tiny_tagger

CELL, IMAGES = Cell(1.0, 8), 6
RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))


@pytest.fixture
def run(train_config):
    """The folder of a run whose LoRA draws red images where the base draws blue ones."""
    config = train_config()
    folder = config.run_dir / "select" / "images"
    folder.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(to_yaml(config))
    for cell, image in ((BASE, BLUE), (CELL, RED)):
        for repeat in range(IMAGES):
            Drawing(cell, 0, repeat).path(folder).write_bytes(png_of(image))
    content = {
        "recommended": {"step": CELL.step, "strength": CELL.strength},
        "images_per_prompt": IMAGES,
        "prompts": [asdict(SamplePrompt("a cat", "", 64, 64, 0, 5.0, 2))],
        "cells": [{"step": cell.step, "strength": cell.strength} for cell in (BASE, CELL)],
    }
    (folder.parent / "select.json").write_text(json.dumps(content))
    return config.run_dir


def test_the_tags_of_the_loras_images_alone_are_reported(run, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    save_tiny_tagger(tmp_path / "tagger")
    red, blue = (set(text.split(", ")) for text in Tagger(str(tmp_path / "tagger"), TaggerConfig())([RED, BLUE]))
    assert red - blue and blue - red
    assert main([str(run), "--caption_model", str(tmp_path / "tagger")]) == 0
    said = capsys.readouterr()
    found = json.loads((run / "select" / "came_along.json").read_text())
    assert {one["word"] for one in found["came_along"]} == red - blue
    assert all((one["with_trigger"], one["base"]) == (1.0, 0.0) for one in found["came_along"])
    assert (run / "select" / "came_along.txt").read_text() == said.out and "100 %" in said.out
    assert "wrote" in said.err


def test_what_cannot_be_described_is_one_line_and_an_exit_code(run, tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "holds no config.yaml" in capsys.readouterr().err
    assert main([str(run), "--caption_model", "none"]) == 2
    assert "caption_model is none, it must be a captioner or a tagger" in capsys.readouterr().err
    assert main([str(run), "--strength", "0.5"]) == 2
    assert "checkpoint-8 at strength 0.5 was not drawn" in capsys.readouterr().err
    drawn = run / "select" / "select.json"
    enough = drawn.read_text()
    drawn.write_text(json.dumps({**json.loads(enough), "images_per_prompt": 4}))
    assert main([str(run), "--caption_model", str(tmp_path / "no captioner")]) == 2
    assert "there are 4 images with the LoRA, too few" in capsys.readouterr().err, "before a model is looked for"
    drawn.write_text(enough)
    (tmp_path / "empty").mkdir()
    assert main([str(run), "--caption_model", str(tmp_path / "empty")]) == 2
    assert "error: " in capsys.readouterr().err and not (run / "select" / "came_along.txt").exists()


def test_libraries_are_quiet_before_one_is_imported(tmp_path, monkeypatch, capsys):
    def quiet():
        raise ConfigError("first")

    monkeypatch.setattr(came_along, "quiet_libraries", quiet)
    monkeypatch.setitem(sys.modules, "sdxl_lora.select.__main__", None)
    assert came_along.main([str(tmp_path)]) == 2 and capsys.readouterr().err == "error: first\n"

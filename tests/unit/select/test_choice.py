"""Images to draw, their names, and the facts about each in its file."""

import pytest

from sdxl_lora.errors import ConfigError
from sdxl_lora.select.choice import BASE, Candidate, Cell, Choice, Drawing, prompts_of, usable_strengths
from tests.helpers.configs import flat_train_config


def asked(lines, captions=(), words=("sks",), **settings):
    return prompts_of(flat_train_config(train_data_dir="data", seed=7, **settings), lines, captions, words, (64, 96))


def test_each_prompt_with_the_trigger_word_is_drawn_without_it_too_and_none_twice():
    prompts = asked(["sks, a cat --d 3", "a dog --w 32", "a cat --d 3"])
    assert [prompt.text for prompt in prompts] == ["sks, a cat", "a cat", "a dog"]
    assert [(prompt.width, prompt.height, prompt.seed) for prompt in prompts] == [(96, 64, 3)] * 2 + [(32, 64, 7)]
    assert [prompt.text for prompt in asked(["a cat"], words=())] == ["a cat"]
    assert [prompt.text for prompt in asked(["a cat"])] == ["a cat"], "no prompt has the word: learned is left out"


def test_without_prompts_captions_are_drawn_as_they_stand():
    captions = ["a", "a", "b --w 3", "", "c", "d", "e", "f", "g", "h"]
    assert [prompt.text for prompt in asked([], captions, words=())] == ["a", "c", "e", "g"]
    assert [prompt.text for prompt in asked([], ["b --w 3"], words=())] == ["b --w 3"]
    with pytest.raises(ConfigError, match="nothing to draw: no prompt is given and every caption is empty"):
        asked([], ["", " "])


def test_an_image_is_told_by_its_lora_and_strength(tmp_path):
    prompts = asked(["sks, a cat"])
    choice = Choice((Candidate(500, tmp_path / "x", "ab" * 32),), (0.5, 1.0), prompts, ("sks",), 2)
    assert choice.cells == [BASE, Cell(0.5, 500), Cell(1.0, 500)]
    drawings = choice.drawings()
    assert len(drawings) == len({one.path(tmp_path) for one in drawings}) == 3 * 2 * 2
    drawing = Drawing(Cell(0.5, 500), 0, 1)
    assert drawing.path(tmp_path).name == "step-000500-strength-0.5-prompt-0-image-1.png"
    about = choice.parameters(drawing)
    assert about.startswith("sks, a cat\nSteps: 25") and "Seed: 8" in about
    assert about.endswith('Lora hashes: "checkpoint-500: abababababab", Lora strength: 0.5')
    assert "Lora" not in choice.parameters(Drawing(BASE, 0, 1))
    assert [choice.calls_up(prompt) for prompt in prompts] == [True, False]


@pytest.mark.parametrize("strengths", [(), (0.0, 1.0), (-1.0,), (float("nan"),), (float("inf"),)])
def test_strengths_that_cannot_be_are_refused(strengths):
    with pytest.raises(ConfigError, match="give numbers above 0"):
        usable_strengths(strengths)


def test_strengths_rise_and_are_there_once():
    assert usable_strengths([1.0, 0.5, 1.0]) == (0.5, 1.0)

"""Drawings of equal parameters are kept, all others are drawn once, each process its share."""

from dataclasses import replace

import pytest
from PIL import Image

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.select.choice import BASE, Candidate, Choice
from sdxl_lora.select.draw import draw_missing, missing_drawings


class Recorder:
    """Draws a plain image, and keeps what it was told."""

    def __init__(self):
        self.told = []

    def put_on(self, candidate):
        self.told.append(candidate.step)

    def set_strength(self, strength):
        self.told.append(strength)

    def paint(self, prompt, repeat):
        self.told.append((prompt.text, repeat))
        return Image.new("RGB", (prompt.width, prompt.height))


@pytest.fixture
def choice(tmp_path):
    prompts = tuple(SamplePrompt(text, "", 32, 32, 0, 5.0, 2) for text in ("a cat", "a dog"))
    candidates = tuple(Candidate(step, tmp_path / "x", f"{step}" * 12) for step in (10, 20))
    return Choice(candidates, (0.5, 1.0), prompts, (), 2)


def draw(choice, folder, rank=0, world_size=1, missing=None):
    """Draws what is missing and returns what the models were told; [] where they were not loaded."""
    told = []

    def load():
        recorder = Recorder()
        recorder.told = told
        return recorder

    draw_missing(
        choice, missing_drawings(choice, folder) if missing is None else missing, folder, load, rank, world_size
    )
    return told


def images(told):
    return [one for one in told if isinstance(one, tuple)]


def test_processes_share_the_images_and_load_each_lora_once(choice, tmp_path):
    missing = missing_drawings(choice, tmp_path)
    assert len(missing) == (1 + 2 * 2) * 2 * 2
    told = [draw(choice, tmp_path, rank, 2, missing) for rank in (0, 1)]
    assert len(images(told[0])) == len(images(told[1])) == 10
    assert missing_drawings(choice, tmp_path) == [] == draw(choice, tmp_path)
    alone = draw(choice, tmp_path / "alone")
    assert [one for one in alone if not isinstance(one, tuple)] == [0.0, 10, 0.5, 1.0, 20, 0.5, 1.0]


def test_only_what_is_missing_damaged_or_drawn_otherwise_is_drawn_again(choice, tmp_path):
    draw(choice, tmp_path)
    lost, cut = choice.drawings()[5], choice.drawings()[0]
    lost.path(tmp_path).unlink()
    cut.path(tmp_path).write_bytes(cut.path(tmp_path).read_bytes()[:-20])
    assert missing_drawings(choice, tmp_path) == [cut, lost]
    assert len(images(draw(choice, tmp_path))) == 2

    trained_anew = replace(choice, candidates=(choice.candidates[0], replace(choice.candidates[1], sha256="f" * 64)))
    assert {one.cell.step for one in missing_drawings(trained_anew, tmp_path)} == {20}
    other = replace(choice, prompts=(choice.prompts[0], replace(choice.prompts[1], guidance_scale=7.0)))
    assert {one.prompt for one in missing_drawings(other, tmp_path)} == {1}
    more = replace(choice, strengths=(0.5, 0.75, 1.0), images_per_prompt=3)
    again = missing_drawings(more, tmp_path)
    assert all(one.cell.strength == 0.75 or one.repeat == 2 for one in again)
    assert {one.cell for one in again} == set(more.cells) and BASE in more.cells


def test_what_was_drawn_before_it_was_interrupted_stays(choice, tmp_path):
    class Dying(Recorder):
        def paint(self, prompt, repeat):
            if len(images(self.told)) == 3:
                raise KeyboardInterrupt
            return super().paint(prompt, repeat)

    with pytest.raises(KeyboardInterrupt):
        draw_missing(choice, missing_drawings(choice, tmp_path), tmp_path, Dying)
    assert len(missing_drawings(choice, tmp_path)) == 17 == len(images(draw(choice, tmp_path)))

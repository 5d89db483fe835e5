"""Things that came along with a run's LoRA, found by describing a choice's images in words. Draws nothing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.trigger_word import has_trigger_word, without_trigger_words
from sdxl_lora.data.dataset import trigger_words_of
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.run.status import replace_text
from sdxl_lora.sampling.generate import read_image
from sdxl_lora.select.choice import BASE, Cell, Drawing
from sdxl_lora.select.report import JSON_NAME
from sdxl_lora.select.selection import FOLDER, references_of, trained_images
from sdxl_lora.select.words import FEWEST, Shown, asked_by, came_along, table

TEXT_NAME, WORDS_NAME = "came_along.txt", "came_along.json"
Describe = Callable[[Sequence[Image.Image]], list[frozenset[str]]]  # images to the words that describe each


class Drawn:
    """Images drawn by `python -m sdxl_lora.select` for one checkpoint of a run at one strength, and for the base.

    Args:
        step, strength: None for the recommended ones.
    Raises:
        ConfigError: nothing was drawn or recommended, nothing at this step and strength, or too few images.
    """

    def __init__(self, config: TrainConfig, step: int | None = None, strength: float | None = None):
        self.folder = config.run_dir / FOLDER
        path = self.folder / JSON_NAME
        if not path.is_file():
            raise ConfigError(f"there is no {path}: run `python -m sdxl_lora.select {config.run_dir}` first")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.prompts = [SamplePrompt(**prompt) for prompt in content["prompts"]]
            of_first_round = content["images_per_prompt"]  # earlier versions had no other round
            numbers = {
                Cell(float(cell["strength"]), int(cell["step"])): int(cell.get("images_per_prompt", of_first_round))
                for cell in content["cells"]
            }
            cells = list(numbers)
            recommended = content["recommended"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): run `python -m sdxl_lora.select` again") from error
        step = step if step is not None else recommended and recommended["step"]
        strength = strength if strength is not None else recommended and recommended["strength"]
        there = ", ".join(map(str, (cell for cell in cells if cell != BASE)))
        if step is None or strength is None:
            raise ConfigError(f"{path} recommends nothing: give --step and --strength; these were drawn: {there}")
        self.cell = Cell(strength, step)
        if self.cell not in cells or self.cell == BASE:
            raise ConfigError(f"{self.cell} was not drawn; these were: {there}")
        self.images = min(numbers[self.cell], numbers[BASE])
        trigger_words = trigger_words_of(config.data)
        self.with_trigger, self.without = split_prompts(self.prompts, trigger_words)
        self.called = "with the trigger word" if trigger_words else "with the LoRA"
        self.count = len(self.with_trigger) * self.images
        if self.count < FEWEST:
            raise ConfigError(
                f"there are {self.count} images {self.called}, too few to tell anything apart from chance: draw at "
                f"least {FEWEST} with `python -m sdxl_lora.select`, with more prompts or a larger --images"
            )

    def described(self, cell: Cell, prompts: Sequence[int], describe: Describe) -> dict[str, Shown]:
        """Return the descriptions of a cell's images of some prompts, by file name.

        Raises:
            DataError: an image is gone or damaged.
        """
        asked, images = {}, []
        for prompt in prompts:
            for repeat in range(self.images):
                path = Drawing(cell, prompt, repeat).path(self.folder / "images")
                image = read_image(path)
                if image is None:
                    raise DataError(f"{path} is gone or damaged: run `python -m sdxl_lora.select` again")
                images.append(image.convert("RGB"))
                asked[path.name] = asked_by(self.prompts[prompt].text)
        said = describe(images) if images else []
        return {name: Shown(words, asked[name]) for name, words in zip(asked, said, strict=True)}


def split_prompts(prompts: Sequence[SamplePrompt], trigger_words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the numbers of the prompts with a trigger word, and of their partners without it.

    If there are no trigger words, all prompts are in the first group.
    """
    with_trigger = [
        number
        for number, prompt in enumerate(prompts)
        if not trigger_words or any(has_trigger_word(prompt.text, word) for word in trigger_words)
    ]
    partners = {without_trigger_words(prompts[number].text, trigger_words) for number in with_trigger}
    return with_trigger, [
        number for number, prompt in enumerate(prompts) if number not in with_trigger and prompt.text in partners
    ]


def report_on(
    config: TrainConfig, describe: Describe, step: int | None = None, strength: float | None = None
) -> tuple[str, list[Path]]:
    """Describe the images of a run's choice and its training images, and write a report of what came along.

    Args:
        step, strength: those to describe; None for the recommended ones.
    Returns:
        The table, and the paths of the files written: the table, and all words as JSON.
    Raises:
        ConfigError, DataError: images were never drawn, are too few, or are gone.
    """
    drawn = Drawn(config, step, strength)
    references = references_of(*trained_images(config))
    groups = {
        "with_trigger": drawn.described(drawn.cell, drawn.with_trigger, describe),
        "base": drawn.described(BASE, drawn.with_trigger, describe),
        "without_trigger": drawn.described(drawn.cell, drawn.without, describe),
        "base_without": drawn.described(BASE, drawn.without, describe),
    }
    training = describe(references.images)
    of_lora, of_base, unnamed, unnamed_base = (list(group.values()) for group in groups.values())
    found = came_along(of_lora, of_base, unnamed, unnamed_base, training)
    text = f"{drawn.cell}, {drawn.count} images {drawn.called}\n\n{table(found, drawn.count)}"
    content = {
        "step": drawn.cell.step,
        "strength": drawn.cell.strength,
        "came_along": [asdict(one) for one in found],
        "words": {name: sorted(one.words) for group in groups.values() for name, one in group.items()},
        "training_words": {
            Path(name).name: sorted(said) for name, said in zip(references.names, training, strict=True)
        },
    }
    paths = [drawn.folder / name for name in (TEXT_NAME, WORDS_NAME)]
    replace_text(paths[0], text)
    replace_text(paths[1], json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return text, paths

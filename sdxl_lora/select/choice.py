"""Plan of a choice: checkpoints, strengths, prompts, and the name of each image. Draws nothing, no torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdxl_lora.config.sample_prompt import SamplePrompt, parse_prompt, with_defaults, with_partners
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.trigger_word import has_trigger_word
from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.run.checkpoints import checkpoints, lora_file_of, problem_with, read_manifest

CAPTIONS_AS_PROMPTS = 4  # for a run without prompts of its own


@dataclass(frozen=True)
class Candidate:
    """LoRA file of a checkpoint. sha256: of that file, from the checkpoint's manifest."""

    step: int
    lora: Path
    sha256: str


@dataclass(frozen=True, order=True)
class Cell:
    """Checkpoint at a strength, ordered from mild to strong; step 0 at strength 0 is the base alone."""

    strength: float
    step: int

    def __str__(self) -> str:
        return f"checkpoint-{self.step} at strength {self.strength:g}" if self.step else "the base alone"


BASE = Cell(0.0, 0)


@dataclass(frozen=True)
class Drawing:
    """One image to draw: `prompt` and `repeat` are numbers from 0."""

    cell: Cell
    prompt: int
    repeat: int

    def path(self, folder: Path) -> Path:
        name = f"step-{self.cell.step:06d}-strength-{self.cell.strength:g}-prompt-{self.prompt}-image-{self.repeat}.png"
        return folder / name


@dataclass(frozen=True)
class Choice:
    """Everything that is compared.

    Attributes:
        prompts: with all defaults filled in.
        trigger_words: words by which a prompt evokes the subject; empty where the dataset names none.
        images_per_prompt: each with another seed.
        left_out: a sentence for each checkpoint that cannot be used.
        finalists: the best of the first round; empty before the second.
        final_images: per prompt, of the finalists and the base.
    """

    candidates: tuple[Candidate, ...]
    strengths: tuple[float, ...]
    prompts: tuple[SamplePrompt, ...]
    trigger_words: tuple[str, ...]
    images_per_prompt: int
    left_out: tuple[str, ...] = ()
    finalists: tuple[Cell, ...] = ()
    final_images: int = 0

    @property
    def cells(self) -> list[Cell]:
        """Return the base, then every checkpoint at every strength."""
        return [BASE, *(Cell(strength, one.step) for one in self.candidates for strength in self.strengths)]

    def drawings(self) -> list[Drawing]:
        """Return every image to draw, cell by cell, so that each LoRA is loaded once."""
        return [drawing for cell in self.cells for drawing in self.drawings_of(cell)]

    def drawings_of(self, cell: Cell) -> list[Drawing]:
        """Return the images of one cell, prompt by prompt."""
        numbers = range(self.images_of(cell))
        return [Drawing(cell, prompt, repeat) for prompt in range(len(self.prompts)) for repeat in numbers]

    def images_of(self, cell: Cell) -> int:
        """Return the number of a cell's images per prompt."""
        is_final = self.finalists and cell in (BASE, *self.finalists)
        return self.final_images if is_final else self.images_per_prompt

    def parameters(self, drawing: Drawing) -> str:
        """Return the image's parameters in A1111's format; another text means another image."""
        about = self.prompts[drawing.prompt].describe(drawing.repeat)
        if drawing.cell == BASE:
            return about
        sha256 = next(one.sha256 for one in self.candidates if one.step == drawing.cell.step)
        lora = f"checkpoint-{drawing.cell.step}: {sha256[:12]}"
        return f'{about}, Lora hashes: "{lora}", Lora strength: {drawing.cell.strength:g}'

    def calls_up(self, prompt: SamplePrompt) -> bool:
        """Return whether a prompt evokes the trained subject: it has a trigger word, or no trigger words exist."""
        return not self.trigger_words or any(has_trigger_word(prompt.text, word) for word in self.trigger_words)


def usable_strengths(strengths: Sequence[float]) -> tuple[float, ...]:
    """Return the strengths in rising order without duplicates.

    Raises:
        ConfigError: there are none, or one is not above 0.
    """
    if not strengths or not all(math.isfinite(one) and one > 0 for one in strengths):
        given = " ".join(f"{one:g}" for one in strengths) or "nothing"
        raise ConfigError(f"--strengths is {given}: give numbers above 0, such as 0.6 0.8 1")
    return tuple(sorted(set(strengths)))


def find_candidates(
    run_dir: Path, steps: Sequence[int], info: Callable[[str], None]
) -> tuple[list[Candidate], list[str]]:
    """Return the whole checkpoints of a run, oldest first, and a sentence for each damaged one.

    Args:
        steps: of the checkpoints to take; empty for all.
        info: told of each checkpoint that is left out.
    Raises:
        CheckpointError: there is none, none is whole, or one that was asked for is missing or damaged.
    """
    there = {int(path.name.split("-")[1]): path for path in checkpoints(run_dir)}
    if not there:
        raise CheckpointError(
            f"{run_dir} holds no checkpoints: name the output_dir of a training that has saved some "
            "(--checkpointing_steps, and --checkpoints_total_limit keeps only the newest)"
        )
    if missing := [step for step in steps if step not in there]:
        raise CheckpointError(
            f"{run_dir} has no checkpoint of step {', '.join(map(str, missing))}; "
            f"there are {', '.join(map(str, there))}"
        )
    candidates, left_out = [], []
    for step, path in there.items():
        if steps and step not in steps:
            continue
        if problem := problem_with(path):
            if steps:
                raise CheckpointError(f"{path.name} cannot be used: {problem}")
            left_out.append(f"{path.name} is left out: {problem}")
            info(left_out[-1])
            continue
        lora = lora_file_of(path)
        candidates.append(Candidate(step, lora, read_manifest(path)["files"][lora.name]["sha256"]))
    if not candidates:
        raise CheckpointError(f"no checkpoint in {run_dir} is intact: {'; '.join(left_out)}")
    return candidates, left_out


def prompts_of(
    config: TrainConfig,
    lines: Sequence[str],
    captions: Sequence[str],
    trigger_words: Sequence[str],
    size: tuple[int, int],
) -> tuple[SamplePrompt, ...]:
    """Return the prompts to draw with all defaults filled in; one with a trigger word is followed by one without it.

    Args:
        lines: in the form of --validation_prompt; empty for some of the captions.
        captions: of the training images.
        size: height and width for prompts that name none.
    Raises:
        ConfigError: a prompt cannot be read, or there are none at all.
    """
    if not lines:
        distinct = list(dict.fromkeys(caption for caption in captions if caption.strip()))
        # not parsed: dashes in a caption are no options
        given = [SamplePrompt(caption) for caption in evenly(distinct, CAPTIONS_AS_PROMPTS)]
    else:
        given = [parse_prompt(line) for line in lines]
    if not given:
        raise ConfigError("there is nothing to draw: no prompt is given and every caption is empty; give --prompt")
    prompts = [with_defaults(prompt, **config.sample_defaults(size)) for prompt in given]
    if any(has_trigger_word(prompt.text, word) for prompt in prompts for word in trigger_words):
        prompts = with_partners(prompts, trigger_words)
    once: dict[SamplePrompt, SamplePrompt] = {}
    for prompt in prompts:  # a partner that is among the prompts is drawn once
        once.setdefault(replace(prompt, is_without_trigger=False), prompt)
    return tuple(once.values())


def evenly(items: Sequence[str], count: int) -> list[str]:
    """Return at most `count` of the items, evenly spaced."""
    return [items[index * len(items) // count] for index in range(count)] if len(items) > count else list(items)

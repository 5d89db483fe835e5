"""Steps of a choice: plan, draw, measure, draw more of the best and measure those again, recommend."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from sdxl_lora.config.sample_prompt import SamplePrompt, read_prompts_file
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.trigger_word import without_trigger_words
from sdxl_lora.data.dataset import trigger_words_of
from sdxl_lora.data.image_dataset import Images
from sdxl_lora.data.split import held_out
from sdxl_lora.distributed.collectives import on_main_and_broadcast, raise_on_all_ranks
from sdxl_lora.errors import ConfigError, DataError
from sdxl_lora.io.memo import FileMemo
from sdxl_lora.models.loading import base_of, check_base
from sdxl_lora.performance.device_memory import out_of_memory_advice
from sdxl_lora.run.defaults import settle_variant
from sdxl_lora.run.disk_errors import disk_errors
from sdxl_lora.sampling.generate import spread, to_image
from sdxl_lora.sampling.similarity import Similarity
from sdxl_lora.select.choice import BASE, Cell, Choice, Drawing, find_candidates, prompts_of, usable_strengths
from sdxl_lora.select.draw import draw_missing, drawn, missing_drawings
from sdxl_lora.select.images import PromptMatcher, thumbnails
from sdxl_lora.select.keep import keep_recommended
from sdxl_lora.select.models import Painter
from sdxl_lora.select.report import as_json, grid, table, write_report
from sdxl_lora.select.scores import FINALISTS, Measured, Recommendation, Scale, Score, finalists, recommend
from sdxl_lora.training.data import open_images
from sdxl_lora.training.data_plan import most_common_size
from sdxl_lora.training.samples import SIMILARITY_REFERENCES

FOLDER = "select"  # in the run's folder
NONE = "none"  # instead of a similarity model: draw, but recommend nothing


@dataclass(frozen=True)
class Request:
    """Request of a user; None or empty values stand for the run's own.

    steps: of the checkpoints to compare.
    prompts: in the form of --validation_prompt.
    images, final_images: per prompt, of all cells and of the finalists; no second round unless it has more.
    """

    strengths: Sequence[float]
    steps: Sequence[int] = ()
    prompts: Sequence[str] = ()
    images: int = 2
    final_images: int = 8
    similarity_model: str | None = None
    clip_model: str | None = None


@dataclass(frozen=True)
class Judges:
    """Models that measure, on the main process."""

    similarity: Similarity | None
    matcher: PromptMatcher | None


@dataclass(frozen=True)
class References:
    """Sample of the training images, by name."""

    names: list[str]
    images: list[Image.Image]


def select(config: TrainConfig, request: Request, accelerator, info: Callable[[str], None]) -> Recommendation:
    """Draw what is missing, measure it, and write table, JSON, grid, the recommended LoRA and the card's section.

    Every process calls this; they share the drawing.

    Raises:
        ConfigError, DataError, CheckpointError: something is unusable or missing; raised before anything is drawn.
    """
    config, said = on_main_and_broadcast(accelerator, lambda: settle_variant(config))
    for line in said:
        info(line)
    folder = config.run_dir / FOLDER / "images"
    on_main: list[tuple[Judges, References]] = []

    # --- the first round ---

    def prepare() -> tuple[Choice, list[Drawing]]:
        candidates, left_out = find_candidates(config.run_dir, request.steps, info)
        strengths = usable_strengths(request.strengths)
        check_base(base_of(config.model))
        judges = load_judges(config, request)
        references, prompts, words = look_at_dataset(config, request)
        choice = Choice(tuple(candidates), strengths, prompts, words, request.images, tuple(left_out))
        missing, total = missing_drawings(choice, folder), len(choice.drawings())
        info(
            f"{len(candidates)} checkpoints x {len(strengths)} strengths and the base, {len(prompts)} prompts, "
            f"{request.images} images each: {total} images, {total - len(missing)} of them are already there"
            + (f"; then more of the {FINALISTS} best" if has_second_round(request, judges) else "")
        )
        on_main.append((judges, references))
        return choice, missing

    choice, missing = on_main_and_broadcast(accelerator, prepare)
    draw_together(config, choice, missing, accelerator, info)

    # --- the second round ---

    def find_finalists() -> tuple[Choice, list[Drawing]]:
        judges, references = on_main[0]
        if not has_second_round(request, judges):
            return choice, []
        best = finalists(scored(choice, judges, references, folder, accelerator.device)[1])
        if len(best) < 2:
            return choice, []
        final = replace(choice, finalists=best, final_images=request.final_images)
        missing, more = missing_drawings(final, folder), len(final.drawings()) - len(choice.drawings())
        info(
            f"the {len(best)} best, {', '.join(map(str, best))}, and the base get {request.final_images} images for "
            f"each prompt: {more} more, {more - len(missing)} of them are already there"
        )
        return final, missing

    choice, missing = on_main_and_broadcast(accelerator, find_finalists)
    draw_together(config, choice, missing, accelerator, info)
    with disk_errors(config.run_dir):
        return on_main_and_broadcast(
            accelerator, lambda: conclude(config, request, choice, *on_main[0], accelerator.device, info)
        )


def has_second_round(request: Request, judges: Judges) -> bool:
    """Return whether the best are drawn again: there is a model to tell them, and more images are asked for."""
    return judges.similarity is not None and request.final_images > request.images


def draw_together(
    config: TrainConfig, choice: Choice, missing: Sequence[Drawing], accelerator, info: Callable[[str], None]
) -> None:
    """Draw the missing images, each process its share."""
    texts = {text for prompt in choice.prompts for text in (prompt.text, prompt.negative)}
    advice = ["smaller images: --prompt 'a cat --w 768 --h 768'"]
    with (
        disk_errors(config.run_dir),
        out_of_memory_advice(accelerator.device, config.data.resolution, 1, advice),
        raise_on_all_ranks(accelerator),
    ):
        draw_missing(
            choice,
            missing,
            config.run_dir / FOLDER / "images",
            lambda: Painter(config, base_of(config.model), choice.candidates[0], texts, accelerator, info),
            accelerator.process_index,
            accelerator.num_processes,
        )


def load_judges(config: TrainConfig, request: Request) -> Judges:
    """Load the models that measure.

    Raises:
        ConfigError: one cannot be loaded, or no similarity model is named.
    """
    similarity = request.similarity_model or config.evaluation.similarity_model
    if similarity is None:
        raise ConfigError(
            "the run was given no similarity_model, and without one nobody can tell how similar to the training "
            "images an image is: give --similarity_model, e.g. facebook/dinov2-base; or --similarity_model none to "
            "have the images drawn and nothing recommended"
        )
    return Judges(
        None if similarity == NONE else Similarity(similarity),
        None if request.clip_model is None else PromptMatcher(request.clip_model),
    )


def trained_images(config: TrainConfig) -> tuple[Images, list[int]]:
    """Return the run's images, and the indices of those that trained, without class images.

    Raises:
        ConfigError: the run trained on a stream.
    """
    if config.data.dataset_streaming:
        raise ConfigError("the run was trained on a stream, whose images cannot be read again to compare with")
    images = open_images(config, FileMemo(config.cache_folder / "memo.json"))
    split = config.evaluation.validation_split
    out = set(held_out(images.examples, split, config.seed)) if split else set()
    return images, [i for i, one in enumerate(images.examples) if not one.is_class_image and i not in out]


def references_of(images: Images, trained: Sequence[int]) -> References:
    """Return a sample of the training images to compare with."""
    chosen = spread(list(trained), SIMILARITY_REFERENCES)
    return References(
        [images.examples[index].name for index in chosen], [to_image(images.load(index)["pixels"]) for index in chosen]
    )


def look_at_dataset(
    config: TrainConfig, request: Request
) -> tuple[References, tuple[SamplePrompt, ...], tuple[str, ...]]:
    """Return references from the training images, the prompts to draw, and the trigger words."""
    images, trained = trained_images(config)
    references = references_of(images, trained)
    lines = list(request.prompts or config.evaluation.validation_prompt)
    if not request.prompts and config.evaluation.validation_prompts_file:
        lines += read_prompts_file(config.evaluation.validation_prompts_file)
    words = tuple(trigger_words_of(config.data))
    captions = [images.examples[index].caption for index in trained]
    return references, prompts_of(config, lines, captions, words, most_common_size(config, images.examples)), words


def conclude(
    config: TrainConfig,
    request: Request,
    choice: Choice,
    judges: Judges,
    references: References,
    device: torch.device,
    info: Callable[[str], None],
) -> Recommendation:
    """Measure the images, and write the report and the recommendation."""
    folder = config.run_dir / FOLDER
    scale, scores = scored(choice, judges, references, folder / "images", device)
    recommendation = recommend({cell: scores[cell] for cell in choice.finalists or choice.cells})
    about = {
        "similarity_model": request.similarity_model or config.evaluation.similarity_model,
        "clip_model": request.clip_model,
    }
    text = table(choice, scores, recommendation, scale.left_out, references.names)
    content = as_json(choice, scores, recommendation, scale.left_out, references.names, about)
    sheet = grid(choice, scores, recommendation.cell, lambda cell, prompt: image_at(choice, cell, prompt, folder))
    print(text)
    for path in write_report(folder, text, content, sheet):
        info(f"wrote {path}")
    keep_recommended(config, choice, recommendation, info)
    return recommendation


def scored(
    choice: Choice, judges: Judges, references: References, folder: Path, device: torch.device
) -> tuple[Scale, dict[Cell, Score]]:
    """Measure the images of every cell, and return their scores and the scale."""
    training = judges.similarity.embed(references.images, device) if judges.similarity else None
    scale = Scale(training, thumbnails(references.images), measure(choice, BASE, folder, judges, device))
    cells = tqdm(choice.cells, desc="measuring", unit="cell")
    return scale, {cell: scale.score(cell, measure(choice, cell, folder, judges, device)) for cell in cells}


def measure(choice: Choice, cell: Cell, folder: Path, judges: Judges, device: torch.device) -> Measured:
    """Return the images of a cell as numbers."""
    drawings = choice.drawings_of(cell)
    images = [image_of(choice, one, folder) for one in drawings]
    # CLIP knows no trigger word, so a prompt and its partner without it count as one
    texts = [without_trigger_words(prompt.text, choice.trigger_words) for prompt in choice.prompts]
    distinct = list(dict.fromkeys(texts))
    return Measured(
        judges.similarity.embed(images, device) if judges.similarity else None,
        judges.matcher.match(images, distinct, device) if judges.matcher else None,
        thumbnails(images),
        [distinct.index(texts[one.prompt]) for one in drawings],
        [choice.calls_up(choice.prompts[one.prompt]) for one in drawings],
    )


def image_of(choice: Choice, drawing: Drawing, folder: Path) -> Image.Image:
    """Return an image that was drawn; DataError if it is gone or damaged."""
    image = drawn(choice, drawing, folder)
    if image is None:
        raise DataError(f"{drawing.path(folder)} is gone or damaged since it was drawn: run the same command again")
    return image


def image_at(choice: Choice, cell: Cell, prompt: int, folder: Path) -> Image.Image:
    """Return the first image of a prompt."""
    return image_of(choice, Drawing(cell, prompt, 0), folder / "images")

"""Plan of training images, steps and sample prompts, made before anything is encoded."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.captions import check_shares, preservation_of, prompts_of
from sdxl_lora.data.image_dataset import Example, Images, check_class_images
from sdxl_lora.data.sampler import BucketSampler
from sdxl_lora.data.split import held_out
from sdxl_lora.training.checks import sample_prompts_of

TIMES, LEAST_TIMES = 100, 10  # uses of each image in a training without a given length
FEWEST_STEPS, MOST_STEPS = 1000, 3000  # AdamW at 1e-4 has learned little before, and most subjects after
SMALL = 0.6  # of the resolution's square: its buckets are larger


@dataclass(frozen=True)
class DataPlan:
    """Plan of training images, steps and sample prompts. Nothing is encoded yet.

    Attributes:
        held_out: indices of the images that no step sees.
        prompts: of samples, with all defaults filled in.
        captions: every prompt that a step will read; None where captions are encoded in every step.
    """

    images: Images
    held_out: list[int]
    sampler: BucketSampler
    total_steps: int
    prompts: list[SamplePrompt]
    captions: set[str] | None

    @property
    def examples(self) -> Sequence[Example]:
        return self.images.examples

    @property
    def images_per_step(self) -> int:
        return self.sampler.images_per_step

    def prompts_to_show(self) -> list[str]:
        """Return the prompts that samples and validation read beside the training captions."""
        drawn = [text for prompt in self.prompts for text in (prompt.text, prompt.negative)]
        return [*drawn, *(caption for index in self.held_out for caption in self.examples[index].captions)]

    def written_captions(self) -> list[str]:
        """Return all captions of all images, unaltered."""
        return [caption for example in self.examples for caption in example.captions]


def plan_data(config: TrainConfig, images: Images, world_size: int, info: Callable[[str], None]) -> DataPlan:
    """Plan which images train, and in which steps.

    Raises:
        ConfigError: missing class images that are weighted, shares of captions that do not fit the images, or nothing
            left to train on.
    """
    examples, batch, split = images.examples, config.batch, config.evaluation.validation_split
    preservation = preservation_of(config.objective, config.data)
    check_class_images(examples, config.objective.prior_loss_weight, preserves=preservation.share > 0)
    preservation.check(caption for example in examples for caption in example.captions)
    check_shares(((example.name, example.captions) for example in examples), config.captions.caption_shares)
    out = held_out(examples, split, config.seed) if split else []
    left_out = set(out)
    sizes = [None if index in left_out else example.target_size for index, example in enumerate(examples)]
    steps, num_epochs = batch.max_train_steps, None if batch.max_train_steps else batch.num_train_epochs
    repeats = [example.repeats for example in examples]
    for note in notes_on_resolution(config.data.resolution, images):
        info(note)
    sampler = BucketSampler(sizes, batch.images_per_process * world_size, config.seed, num_epochs, repeats)
    if num_epochs is not None:
        steps = sampler.first_step(num_epochs)
    elif steps is None:
        steps, said = steps_that_suffice([e for i, e in enumerate(examples) if i not in left_out], sampler)
        info(said)
    captions = captions_that_will_occur(config, examples, sampler, steps, info)
    prompts = sample_prompts_of(config, most_common_size(config, examples))
    return DataPlan(images, out, sampler, steps, prompts, captions)


def steps_that_suffice(trained: Sequence[Example], sampler: BucketSampler) -> tuple[int, str]:
    """Return the default number of steps, and a line that reports it.

    It depends on how often the subject's images are used, whatever repeats and class images make of an epoch.
    """
    repeats = [float(example.repeats) for example in trained if not example.is_class_image]
    repeats = repeats or [float(example.repeats) for example in trained]
    epochs = TIMES * len(repeats) / sum(repeats)
    wanted = math.ceil(epochs * float(sampler.samples_per_epoch) / sampler.images_per_step)
    steps = max(FEWEST_STEPS, min(wanted, MOST_STEPS), wanted * LEAST_TIMES // TIMES)
    return steps, (
        f"length: {steps} steps, in which each image is used about {TIMES * steps / wanted:.0f} times; "
        "--max_train_steps or --num_train_epochs choose another"
    )


def notes_on_resolution(resolution: int, images: Images) -> list[str]:
    """Return a note if images were prepared at another resolution, since they train at their own size."""
    areas = [height * width for height, width in (example.target_size for example in images.examples)]
    if not images.is_prepared or not areas or SMALL * resolution**2 <= max(areas) <= resolution**2:
        return []
    return [
        f"resolution {resolution} does not change images that are already prepared, at about "
        f"{round(max(areas) ** 0.5)}: to change their size, prepare them again"
    ]


def captions_that_will_occur(
    config: TrainConfig,
    examples: Iterable[Example],
    sampler: BucketSampler,
    total_steps: int,
    info: Callable[[str], None],
) -> set[str] | None:
    """Return every prompt that the steps read; None if captions are encoded in every step."""
    if config.adapter.train_text_encoder:
        info("the text encoders train: captions are encoded live")
        return None
    if not config.cache.cache_text_embeddings:
        return None
    written, limit = [example.captions for example in examples], config.cache.max_cached_captions
    samples = (sample for _, samples in islice(sampler.from_step(0), total_steps) for sample in samples)
    captions = prompts_of(written, config.seed, samples, config.captions, limit)
    if captions is None:
        info(f"captions vary in more than {limit} ways: the text encoders stay and encode them live")
    elif config.captions.vary or any(len(captions_of_one) > 1 for captions_of_one in written):
        info(f"captions vary: all {len(captions)} that will occur are cached")
    preservation = preservation_of(config.objective, config.data)
    return captions if captions is None else captions | {preservation.caption(caption) for caption in captions}


def most_common_size(config: TrainConfig, examples: Iterable[Example]) -> tuple[int, int]:
    """Return the most common height and width; without images, the resolution's square."""
    count = Counter(example.target_size for example in examples)
    return count.most_common(1)[0][0] if count else (config.data.resolution, config.data.resolution)

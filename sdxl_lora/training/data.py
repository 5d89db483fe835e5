"""What a training sees: images and captions, encoded once, and the steps that they are dealt into."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from sdxl_lora.cache.fill import fill_caches, weights_key
from sdxl_lora.cache.latents import LatentCache
from sdxl_lora.cache.records import workers_of
from sdxl_lora.cache.text_embeddings import TextCache
from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.captions import prompts_of
from sdxl_lora.data.collate import Augmentation, Collator, StepBatch
from sdxl_lora.data.concat_dataset import ConcatDataset
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset, check_class_images, content_key, dataset_key
from sdxl_lora.data.prefetch import prefetch
from sdxl_lora.data.sampler import BucketSampler
from sdxl_lora.data.split import held_out
from sdxl_lora.data.stream_dataset import Rows, StreamDataset, StreamSampler
from sdxl_lora.data.stream_reader import open_stream
from sdxl_lora.diffusion.noise import draw_flip
from sdxl_lora.diffusion.timesteps import density_of
from sdxl_lora.distributed.collectives import main_process_first, raise_on_all_ranks
from sdxl_lora.io.memo import NO_MEMO, FileMemo
from sdxl_lora.models.base_source import Base
from sdxl_lora.models.loading import DTYPES, load_schedulers, load_text_parts, load_vae
from sdxl_lora.rng import SampleKey, keyed_seed
from sdxl_lora.run.logger import RunLogger
from sdxl_lora.run.session import Run
from sdxl_lora.training.batch_shape import BatchShape
from sdxl_lora.training.checks import sample_prompts_of

STEPS_AHEAD = 2  # collated while the device works on others


@dataclass(frozen=True)
class DataPlan:
    """Which images train, in which steps, and what samples show. Nothing is encoded yet.

    Attributes:
        held_out: indices of the images that no step sees.
        prompts: of samples, with nothing left open.
        captions: every prompt that a step will read; None where captions are encoded in every step.
    """

    images: ImageDataset | ConcatDataset
    held_out: list[int]
    sampler: BucketSampler
    total_steps: int
    prompts: list[SamplePrompt]
    captions: set[str] | None

    @property
    def examples(self):
        return self.images.examples

    @property
    def images_per_step(self) -> int:
        return self.sampler.images_per_step

    def prompts_to_show(self) -> list[str]:
        """Prompts that samples and validation read beside the captions that train."""
        drawn = [text for prompt in self.prompts for text in (prompt.text, prompt.negative)]
        return [*drawn, *(self.examples[index].caption for index in self.held_out)]


class TrainingData:
    """Encoded images and captions, and the steps that are made of them.

    What a step sees is a pure function of the seed and the step.

    Attributes:
        images: the pixels; None for a stream.
        latents, text: the caches, or what encodes in every step.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator,
        base: Base,
        images: ImageDataset | ConcatDataset | None,
        latents: LatentCache | StreamDataset,
        text: TextCache,
        sampler: BucketSampler | StreamSampler,
        held_out: list[int],
        prompts: list[SamplePrompt],
    ):
        self.images, self.latents, self.text, self.sampler = images, latents, text, sampler
        self.held_out, self.prompts = held_out, prompts
        self.is_stream = images is None
        self.examples = latents if images is None else images.examples
        self.images_per_step = config.batch.images_per_process * accelerator.num_processes
        self.total_steps = config.batch.max_train_steps or sampler.first_step(config.batch.num_train_epochs)
        self._config, self._accelerator, self._base = config, accelerator, base

    @property
    def text_is_live(self) -> bool:
        """Whether models that must not work beside the UNet's step read the captions."""
        return self._config.adapter.train_text_encoder or bool(self.text.live_parts)

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width that most images have; of a stream, the square."""
        return most_common_size(self._config, () if self.is_stream else self.examples)

    def fingerprint(self) -> dict:
        """What a resumed run must find as it was."""
        return {
            "vae": self.latents.vae_key,
            "text_encoders": self.text.encoders_key,
            "dataset": self.sampler.key if self.is_stream else dataset_key(self.examples),
            "images_per_step": self.images_per_step,
        }

    is_per_process = True  # of a stream each process reads a part of its own

    def save(self, folder: Path, step: int) -> None:
        if self.is_stream:
            self.sampler.save(folder, step)

    def load(self, folder: Path) -> None:
        if self.is_stream:
            self.sampler.load(folder)

    def tag_frequency(self) -> Counter:
        """How many captions hold each tag, a text between commas."""
        captions = [example.caption for example in self.examples]
        return Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())

    def batches(self, start: int, shape: BatchShape) -> Iterator[StepBatch]:
        """The steps after the first `start`, collated ahead where that needs no model. To be closed after use."""
        is_live = self.text_is_live or not self._config.cache.cache_latents
        return prefetch(self.collator(shape).steps(self.samples_from(start)), 0 if is_live else STEPS_AHEAD)

    def samples_from(self, start: int) -> Iterator[tuple[int, list[SampleKey]]]:
        """(epoch, turns) of each step that is still to be done after the first `start`."""
        return islice(self.sampler.from_step(start), max(0, self.total_steps - start))

    @cached_property
    def _augmentation(self) -> tuple[Augmentation, int]:
        objective = self._config.objective
        schedule, _ = load_schedulers(self._base, objective.prediction_type, objective.zero_terminal_snr)
        steps = schedule.config.num_train_timesteps
        return augmentation_of(self._config, steps), steps

    def collator(self, shape: BatchShape) -> Collator:
        config, accelerator = self._config, self._accelerator
        augmentation, num_train_timesteps = self._augmentation
        return Collator(
            self.examples,
            self.latents,
            None if config.adapter.train_text_encoder else self.text,
            config.seed,
            num_train_timesteps,
            augmentation,
            config.objective.prior_loss_weight,
            accelerator.process_index,
            accelerator.num_processes,
            shape.micro_steps,
            pin=accelerator.device.type == "cuda",
        )


def plan_data(
    config: TrainConfig, images: ImageDataset | ConcatDataset, world_size: int, info: Callable[[str], None]
) -> DataPlan:
    """Which of the images train, in which steps.

    Raises:
        ConfigError: class images that are weighted and not there, or nothing left to train on.
    """
    examples, batch, split = images.examples, config.batch, config.evaluation.validation_split
    check_class_images(examples, config.objective.prior_loss_weight)
    out = held_out(examples, split, config.seed) if split else []
    sizes = [example.target_size for example in examples]
    for index in out:
        sizes[index] = None
    num_epochs = None if batch.max_train_steps else batch.num_train_epochs
    repeats = [example.repeats for example in examples]
    sampler = BucketSampler(sizes, batch.images_per_process * world_size, config.seed, num_epochs, repeats)
    total_steps = batch.max_train_steps or sampler.first_step(batch.num_train_epochs)
    captions = captions_that_will_occur(config, examples, sampler, total_steps, info)
    prompts = sample_prompts_of(config, most_common_size(config, examples))
    return DataPlan(images, out, sampler, total_steps, prompts, captions)


def captions_that_will_occur(config: TrainConfig, examples, sampler, total_steps, info) -> set[str] | None:
    """Every prompt that the steps read; None if they are to be encoded in every step."""
    if config.adapter.train_text_encoder:
        info("the text encoders train: captions are encoded live")
        return None
    if not config.cache.cache_text_embeddings:
        return None
    written, limit = [example.caption for example in examples], config.cache.max_cached_captions
    samples = (sample for _, samples in islice(sampler.from_step(0), total_steps) for sample in samples)
    captions = prompts_of(written, config.seed, samples, config.captions, limit)
    if captions is None:
        info(f"captions vary in more than {limit} ways: the text encoders stay and encode them live")
    elif config.captions.vary:
        info(f"captions vary: all {len(captions)} that will occur are cached")
    return captions


def most_common_size(config: TrainConfig, examples) -> tuple[int, int]:
    """Height and width that most images have; of none, the square."""
    count = Counter(example.target_size for example in examples)
    return count.most_common(1)[0][0] if count else (config.data.resolution, config.data.resolution)


def prepare_data(config: TrainConfig, base: Base, accelerator, run: Run, logger: RunLogger) -> TrainingData:
    """Encode images and captions once; the encoders are gone from memory when this returns, unless they must stay.

    Raises:
        ConfigError, DataError, NonFiniteError: what is wrong with settings, images or captions.
    """
    if config.data.dataset_streaming:
        return prepare_stream(config, base, accelerator, logger)
    memo = FileMemo(config.cache_folder / "memo.json")
    images = main_process_first(accelerator, lambda: open_images(config, memo))
    plan = plan_data(config, images, accelerator.num_processes, logger.info)
    shown = plan.prompts_to_show()
    run.update(state="caching")
    began = time.perf_counter()
    with raise_on_all_ranks(accelerator):
        latents, text = fill_caches(
            config.cache_folder,
            base,
            images,
            prompts=[] if config.adapter.train_text_encoder else shown,
            flips=(False, True) if config.data.random_flip else (False,),
            device=accelerator.device,
            text_dtype=DTYPES[config.compute.mixed_precision],
            num_workers=config.cache.dataloader_num_workers,
            workers=workers_of(
                config.cache.cache_part, accelerator.process_index, accelerator.num_processes, run.stop_requested
            ),
            captions=plan.captions or (),
            chunks=config.captions.max_caption_chunks,
            latents_live=not config.cache.cache_latents,
            encode_live=plan.captions is None,
            read_live=[] if plan.captions is not None else [*shown, *(example.caption for example in plan.examples)],
            memo=memo,
        )
    if accelerator.is_main_process:
        memo.save()
    run.event("cached", pictures=len(images), seconds=round(time.perf_counter() - began, 3))
    return TrainingData(config, accelerator, base, images, latents, text, plan.sampler, plan.held_out, plan.prompts)


def prepare_stream(config: TrainConfig, base: Base, accelerator, logger: RunLogger) -> TrainingData:
    """Data that comes image by image: the encoders stay."""
    data = config.data
    stream = main_process_first(
        accelerator,
        lambda: open_stream(data.train_data_dir, data.dataset_name, data.dataset_config_name, data.max_train_samples),
    )
    vae = load_vae(base).to(accelerator.device)
    latents = StreamDataset(
        rows_opener(config), vae, weights_key(vae), lambda sample: data.random_flip and draw_flip(config.seed, sample)
    )
    shape = BatchShape.of(config.batch)
    sampler = StreamSampler(
        stream,
        latents,
        data.image_column,
        data.caption_column,
        shape.micro_batch,
        shape.micro_steps,
        accelerator.process_index,
        accelerator.num_processes,
        data.shuffle_buffer_size,
        config.seed,
    )
    prompts = sample_prompts_of(config, (data.resolution, data.resolution))
    tokenizers, encoders = load_text_parts(base, DTYPES[config.compute.mixed_precision])
    encoders = [encoder.to(accelerator.device) for encoder in encoders]
    encoders_key = "".join(map(weights_key, encoders))
    text = TextCache(config.cache_folder, encoders_key, config.captions.max_caption_chunks, (tokenizers, encoders))
    logger.info("the pictures are a stream: they and their captions are encoded live")
    return TrainingData(config, accelerator, base, None, latents, text, sampler, [], prompts)


def open_images(config: TrainConfig, memo: FileMemo = NO_MEMO) -> ImageDataset | ConcatDataset:
    """The training images of all datasets."""
    entries = config.data.entries()
    parts = [
        ImageDataset(
            open_dataset(
                entry.train_data_dir, entry.dataset_name, entry.dataset_config_name, config.data.max_train_samples
            ),
            config.data.image_column,
            config.data.caption_column,
            config.data.resolution,
            config.data.center_crop,
            config.seed,
            config.objective.masked_loss,
            memo,
        )
        for entry in entries
    ]
    return ConcatDataset(parts, entries) if config.data.datasets else parts[0]


def rows_opener(config: TrainConfig) -> Callable[[Rows], ImageDataset]:
    """Makes training images of a stream's rows; where to crop at random is decided by the image's bytes."""

    def open_rows(rows: Rows) -> ImageDataset:
        data = rows[0].get(config.data.image_column, {}).get("bytes", b"")
        return ImageDataset(
            rows,
            config.data.image_column,
            config.data.caption_column,
            config.data.resolution,
            config.data.center_crop,
            keyed_seed(config.seed, content_key(data)),
            config.objective.masked_loss,
        )

    return open_rows


def augmentation_of(config: TrainConfig, num_train_timesteps: int) -> Augmentation:
    """What differs from one use of an image to the next.

    Raises:
        ConfigError: timesteps that the base does not have.
    """
    density = density_of(config.timesteps, num_train_timesteps)
    return Augmentation(config.data.random_flip, config.noise, density, config.captions)

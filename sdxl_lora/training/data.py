"""Data of a training: images and captions, encoded once, and their division into steps."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from sdxl_lora.cache.fill import fill_caches, key_in, weights_key
from sdxl_lora.cache.records import workers_of
from sdxl_lora.cache.text_embeddings import TextCache
from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.captions import preservation_of
from sdxl_lora.data.collate import Augmentation, Collator, Latents, StepBatch
from sdxl_lora.data.concat_dataset import ConcatDataset
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import Examples, ImageDataset, Images, content_key, dataset_key
from sdxl_lora.data.prefetch import prefetch
from sdxl_lora.data.sampler import Sampler
from sdxl_lora.data.stream_dataset import Rows, StreamDataset, StreamSampler
from sdxl_lora.data.stream_reader import open_stream
from sdxl_lora.diffusion.noise import draw_flip
from sdxl_lora.diffusion.timesteps import density_of
from sdxl_lora.distributed.collectives import main_process_first, raise_on_all_ranks
from sdxl_lora.io.memo import NO_MEMO, FileMemo
from sdxl_lora.models.base_source import Base
from sdxl_lora.models.loading import DTYPES, load_schedulers, load_text_parts, load_vae
from sdxl_lora.models.vae import PRECISIONS, VaeEncoder
from sdxl_lora.performance.device_memory import COUNTING
from sdxl_lora.rng import SampleKey, keyed_seed
from sdxl_lora.run.logger import RunLogger
from sdxl_lora.run.session import Run
from sdxl_lora.training.batch_shape import BatchShape
from sdxl_lora.training.checks import sample_prompts_of
from sdxl_lora.training.data_plan import most_common_size, plan_data

STEPS_AHEAD = 2  # collated while the device computes


class TrainingData:
    """Encoded images and captions, and the steps made from them.

    The data of a step is a pure function of the seed and the step.

    Attributes:
        images: the pixels; None for a stream.
        latents, text: the caches, or encoders that run in every step.
        stream: sampler of a stream; None where all images are known.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator,
        base: Base,
        images: Images | None,
        examples: Examples,
        latents: Latents,
        text: TextCache,
        sampler: Sampler,
        total_steps: int,
        held_out: Sequence[int],
        prompts: Sequence[SamplePrompt],
    ):
        self.images, self.examples, self.latents, self.text = images, examples, latents, text
        self.sampler, self.total_steps, self.held_out, self.prompts = sampler, total_steps, held_out, prompts
        self.stream = sampler if isinstance(sampler, StreamSampler) else None
        self.images_per_step = config.batch.images_per_process * accelerator.num_processes
        self._config, self._accelerator, self._base = config, accelerator, base

    @property
    def text_is_live(self) -> bool:
        """Return whether captions are read by text encoders, which must not run beside the UNet's step."""
        return self._config.adapter.train_text_encoder or bool(self.text.live_parts)

    @property
    def advice_for_speed(self) -> str:
        """Return advice for steps that wait for their images."""
        if self.stream or not self._config.cache.cache_latents:
            return "They are read and encoded in every step: --cache_latents does that once"
        if self.text_is_live:
            return "Their captions are encoded in every step: cached text embeddings need no encoders"
        return "They are read from the cache: put --cache_dir on a faster disk"

    @property
    def sample_size(self) -> tuple[int, int]:
        """Return the most common height and width; for a stream, the resolution's square."""
        return most_common_size(self._config, () if self.stream else self.examples)

    def fingerprint(self) -> dict:
        """Return the facts that a resumed run must find unchanged."""
        words = preservation_of(self._config.objective, self._config.data).words
        return {
            **({"preserved_trigger_words": list(words)} if words else {}),
            "vae": self.latents.vae_key,
            "text_encoders": self.text.encoders_key,
            "dataset": (self.stream.key if self.stream else dataset_key(self.examples)) + self._config.captions.choice,
            "images_per_step": self.images_per_step,
        }

    is_per_process = True  # each process reads its own part of a stream

    def save(self, folder: Path, step: int) -> None:
        if self.stream:
            self.stream.save(folder, step)

    def load(self, folder: Path) -> None:
        if self.stream:
            self.stream.load(folder)

    def tag_frequency(self) -> Counter:
        """Count the captions that hold each tag, a text between commas."""
        captions = [caption for example in self.examples for caption in example.captions]
        return Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())

    def batches(self, start: int, shape: BatchShape) -> Iterator[StepBatch]:
        """Yield the steps after the first `start`, collated ahead unless encoding is live. Close it after use."""
        is_live = self.text_is_live or not self._config.cache.cache_latents
        steps = self.collator(shape).steps(self.samples_from(start), start)
        return prefetch(steps, 0 if is_live else STEPS_AHEAD)

    def samples_from(self, start: int) -> Iterator[tuple[int, Sequence[SampleKey | None]]]:
        """Yield (epoch, samples) of each remaining step after the first `start`."""
        return islice(self.sampler.from_step(start), max(0, self.total_steps - start))

    @cached_property
    def _augmentation(self) -> tuple[Augmentation, int]:
        schedule, _ = load_schedulers(self._base, self._config.objective)
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
            pin=accelerator.device.type in COUNTING,
        )


def prepare_data(config: TrainConfig, base: Base, accelerator, run: Run, logger: RunLogger) -> TrainingData:
    """Encode images and captions once; afterwards the encoders are out of memory, unless they must stay.

    Raises:
        ConfigError, DataError, NonFiniteError: errors in settings, images or captions.
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
            read_live=[] if plan.captions is not None else [*shown, *plan.written_captions()],
            memo=memo,
            vae_dtype=PRECISIONS[config.cache.vae_precision],
            vae_batch_size=config.cache.vae_batch_size,
        )
    if accelerator.is_main_process:
        memo.save()
    run.event("cached", pictures=len(images), seconds=round(time.perf_counter() - began, 3))
    sampler, steps = plan.sampler, plan.total_steps
    return TrainingData(
        config, accelerator, base, images, plan.examples, latents, text, sampler, steps, plan.held_out, plan.prompts
    )


def prepare_stream(config: TrainConfig, base: Base, accelerator, logger: RunLogger) -> TrainingData:
    """Return the data of a stream, which comes image by image, so that the encoders stay in memory."""
    data = config.data
    stream = main_process_first(
        accelerator,
        lambda: open_stream(data.train_data_dir, data.dataset_name, data.dataset_config_name, data.max_train_samples),
    )
    vae, vae_dtype = load_vae(base).to(accelerator.device), PRECISIONS[config.cache.vae_precision]
    latents = StreamDataset(
        rows_opener(config),
        VaeEncoder(vae, vae_dtype),
        key_in(vae_dtype, weights_key(vae)),
        lambda sample: data.random_flip and draw_flip(config.seed, sample),
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
    logger.info("the images are a stream: they and their captions are encoded live")
    steps = config.batch.max_train_steps
    assert steps is not None, "a stream has no epochs, and the config asks for max_train_steps"
    return TrainingData(config, accelerator, base, None, latents, latents, text, sampler, steps, [], prompts)


def open_images(config: TrainConfig, memo: FileMemo = NO_MEMO) -> Images:
    """Return the training images of all datasets."""
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
            config.captions.captions_per_line,
        )
        for entry in entries
    ]
    return ConcatDataset(parts, entries) if config.data.datasets else parts[0]


def rows_opener(config: TrainConfig) -> Callable[[Rows], ImageDataset]:
    """Return a function that makes training images of a stream's rows; an image's bytes seed its random crop."""

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
            captions_per_line=config.captions.captions_per_line,
        )

    return open_rows


def augmentation_of(config: TrainConfig, num_train_timesteps: int) -> Augmentation:
    """Return the variation between the uses of an image.

    Raises:
        ConfigError: timesteps that the base does not have, or no trigger word where one is needed.
    """
    density = density_of(config.timesteps, num_train_timesteps)
    preservation = preservation_of(config.objective, config.data)
    return Augmentation(config.data.random_flip, config.noise, density, config.captions, preservation)

"""--dry_run: plan of a training from configs and images alone. Reads no weights and writes nothing.

It runs the training's own planning on the meta device, so its numbers are those of the run.
"""

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import CLIPTextModel

from sdxl_lora.cache.text_embeddings import warn_of_long_prompts
from sdxl_lora.config.fields import idle_settings
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.unet_blocks import block_of
from sdxl_lora.distributed.accelerator import device_here, set_arithmetic
from sdxl_lora.distributed.launcher import set_aside
from sdxl_lora.io.hub_files import described as described_downloads
from sdxl_lora.lora.state import adapter_layers, adapter_parameters
from sdxl_lora.models.base_source import Base
from sdxl_lora.models.downloads import downloads_of
from sdxl_lora.models.loading import DTYPES, ENCODERS, base_of, load_schedulers, load_tokenizers
from sdxl_lora.optimizers.optimizers import groups_of, optimizer_of
from sdxl_lora.performance.activation_memory import StepCost, encoding_cost
from sdxl_lora.performance.device_memory import usable_bytes
from sdxl_lora.performance.memory_budget import MemoryCount, bytes_of, memory_level_of
from sdxl_lora.performance.memory_estimate import CUDA_CONTEXT, GIB, latent_record, text_record
from sdxl_lora.performance.time_estimate import TERA, Work, products_per_second
from sdxl_lora.run.checkpoints import checkpoints
from sdxl_lora.run.defaults import settle_defaults, settle_variant
from sdxl_lora.run.pace import duration
from sdxl_lora.run.precision import planned_precision
from sdxl_lora.training.batch_shape import BatchShape, MetaModels, encoding_bytes, memory_count, meta_models, settle
from sdxl_lora.training.checks import check_device, check_names, lack_of_gpu
from sdxl_lora.training.data import augmentation_of, open_images
from sdxl_lora.training.data_plan import DataPlan, plan_data
from sdxl_lora.training.evaluator import TIMESTEPS
from sdxl_lora.training.model import warm_start_of
from sdxl_lora.training.schedule import Cadence


def dry_run(config: TrainConfig) -> str:
    """Return the plan as lines for a person.

    Raises:
        ConfigError, DataError: errors that would end the training itself.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        plan = plan_training(config)
    return described(plan, [str(warning.message) for warning in warned if warning.category is UserWarning])


def described(plan: "TrainingPlan", warned: list[str]) -> str:
    rows = [("images", plan.of_images()), ("steps", plan.of_steps()), ("trains", plan.of_parameters())]
    rows += [("would cache", plan.of_caches()), ("GPU memory", plan.of_memory()), ("time", plan.of_time())]
    rows += [("download", described_downloads(downloads_of(base_of(plan.config.model)))), ("output", plan.of_output())]
    rows += [("notes", list(dict.fromkeys(plan.notes))), ("warnings", warned)]
    lines = ["dry run: nothing is trained or written"]
    for heading, texts in rows:
        lines += [f"{heading if number == 0 else '':12} {text}" for number, text in enumerate(texts)]
    return "\n".join(lines)


def plan_training(config: TrainConfig) -> "TrainingPlan":
    """Return everything that is known of a training before it begins.

    Raises:
        ConfigError, DataError: errors that would end the training itself.
    """
    for text in set_aside(os.environ, config.compute.mixed_precision, config.batch.gradient_accumulation_steps):
        warnings.warn(text, stacklevel=2)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    check_device(config, world_size, "cuda" if config.compute.cuda_graphs == "on" else device_here().type)
    base = base_of(config.model)
    no_gpu = lack_of_gpu(config, check_names(config, base, needs_weights=False), device_here())
    if no_gpu:
        warnings.warn(no_gpu, stacklevel=2)
    config, notes = planned_precision(config, is_for_a_gpu=bool(no_gpu))
    config, of_variant = settle_variant(config)
    config, of_defaults = settle_defaults(config)
    notes += [*of_variant, *of_defaults, *config.notes_on_name(), *idle_settings(config)]
    data = plan_data(config, open_images(config), world_size, notes.append)
    meta = meta_models(config, base, notes.append)
    count = memory_count(config, meta, data.examples, bool(data.prompts), data.captions is None)
    notes += warm_start_of(config.adapter, meta.trained).notes
    shape = BatchShape.of(config.batch)
    if (budget := memory_budget(config, notes)) is not None:
        config, shape = settle(config, count, budget, notes.append)
    check_rest(config, base, meta)
    read = data.written_captions() if data.captions is None else data.captions
    tokenizer = load_tokenizers(base)[0]
    warn_of_long_prompts([*read, *data.prompts_to_show()], tokenizer, config.captions.max_caption_chunks)
    device = None if no_gpu else device_here()
    return TrainingPlan(config, data, meta, count, shape, world_size, device, notes)


def memory_budget(config: TrainConfig, notes: list[str]) -> int | None:
    """Return the bytes available to the training; None where no setting depends on them, or no GPU is here."""
    if config.compute.memory_budget is not None:
        return bytes_of(config.compute.memory_budget)
    if config.batch.train_batch_size != "auto":
        return None
    if (device := device_here()).type != "cpu":
        return usable_bytes(device)
    notes.append("train_batch_size auto is settled where there is a GPU: counted with one image at a time")
    return None


def check_rest(config: TrainConfig, base: Base, meta: MetaModels) -> None:
    """Check the settings that the training itself checks later and that the plan does not cover."""
    schedule, _ = load_schedulers(base, config.objective)
    augmentation_of(config, schedule.config.num_train_timesteps)
    groups = groups_of(config.optimizer, *next(iter(meta.trained.items())))
    optimizer_of(config.optimizer, [{**group, "params": [torch.nn.Parameter(torch.zeros(1))]} for group in groups])


@dataclass(frozen=True)
class TrainingPlan:
    """Training as far as it is known without weights, and the lines that describe it.

    device: the one that would train; None where that is a GPU which this machine lacks.
    """

    config: TrainConfig
    data: DataPlan
    meta: MetaModels
    count: MemoryCount
    shape: BatchShape
    world_size: int
    device: torch.device | None
    notes: list[str]

    def of_images(self) -> list[str]:
        count = Counter(example.target_size for example in self.data.examples)
        sizes = [f"{number} of {width}x{height}" for (height, width), number in count.most_common()]
        shown = sizes[:8] + ([f"{len(sizes) - 8} more sizes"] if len(sizes) > 8 else [])
        lines = [f"{len(self.data.examples)}, {len(self.data.held_out)} held out; {', '.join(shown)}"]
        if class_images := sum(example.is_class_image for example in self.data.examples):
            lines.append(f"{class_images} of them are class images")
        for repeats, number in Counter(example.repeats for example in self.data.examples).items():
            if repeats != 1:
                lines.append(f"{number} of them {float(repeats):g} times per epoch")
        return lines

    def of_steps(self) -> list[str]:
        per_epoch = float(self.data.sampler.samples_per_epoch / self.data.images_per_step)
        epochs = self.data.sampler.passes(self.data.total_steps)
        lines = [
            f"{self.data.total_steps} of {self.data.images_per_step} images ({self.shape.micro_batch} x "
            f"{self.shape.micro_steps} micro-steps x {self.world_size} processes); "
            f"{per_epoch:g} per epoch, {epochs:g} epochs"
        ]
        if self.data.prompts or self.data.held_out:
            cadence = Cadence(self.config, self.data)
            drawn = len(self.data.prompts) * self.config.evaluation.num_validation_images
            lines.append(
                f"samples and validation: at the start, {cadence.evaluation}, and at the end; "
                f"{cadence.to_come(0).evaluations} times, each {drawn} samples, {len(self.data.held_out)} held out"
            )
        small = [
            rows
            for rows in self.data.sampler.members.values()
            if sum(map(len, rows.values())) < self.data.images_per_step
        ]
        if small:
            lines.append(f"{len(small)} sizes have fewer images than a step: they wait for the next epoch to fill it")
        return lines

    def of_parameters(self) -> list[str]:
        """Return the numbers of values and modules, for the UNet by its three parts."""
        lines = []
        for name, model in self.meta.trained.items():
            values: Counter[str] = Counter()
            modules: Counter[str] = Counter()
            for key, parameter in adapter_parameters(model).items():
                values[part_of(name, key)] += parameter.numel()
            for key in adapter_layers(model, name):
                modules[part_of(name, key)] += 1
            lines += [f"{part:16} {values[part]:>12,} parameters in {modules[part]} modules" for part in values]
        return [*lines, f"{'together':16} {sum(p.numel() for p in self.meta.adapter_parameters()):>12,} parameters"]

    @property
    def _encoders(self) -> list[CLIPTextModel]:
        return [self.meta.models[name] for name in ENCODERS]

    def cached_bytes(self) -> tuple[int, int, int, int]:
        """Return the numbers of images' and of prompts' records, and the bytes of each."""
        config, vae = self.config, self.meta.models["vae"].config
        flips = 1 + config.data.random_flip
        sizes = {example.key: example.target_size for example in self.data.examples}
        factor = 2 ** (len(vae.block_out_channels) - 1)
        of_size = {
            size: latent_record(size, vae.latent_channels, factor, config.objective.masked_loss)
            for size in sizes.values()
        }
        prompts = set(self.data.captions or ()) | set(
            () if config.adapter.train_text_encoder else self.data.prompts_to_show()
        )
        widths = tuple(encoder.config.hidden_size for encoder in self._encoders)
        pooled = self._encoders[1].config.projection_dim
        of_prompt = text_record(
            widths, pooled, config.captions.max_caption_chunks, DTYPES[config.compute.mixed_precision]
        )
        kept = list(sizes.values()) * flips if config.cache.cache_latents else []
        return len(kept), len(prompts), sum(of_size[size] for size in kept), len(prompts) * of_prompt

    def of_caches(self) -> list[str]:
        images, prompts, latents, texts = self.cached_bytes()
        folder = self.config.cache_folder
        live = "" if self.config.cache.cache_latents else "; images are encoded live"
        live += "" if self.data.captions is not None else "; captions are encoded live"
        return [
            f"{images} images, {latents:,} bytes; {prompts} prompts, {texts:,} bytes{live}",
            f"into {folder}, but for what is there already" if folder.is_dir() else f"into {folder}",
        ]

    def of_memory(self) -> list[str]:
        """Return the memory while training, by use, and while the cache is filled."""
        parts = self.count.parts(memory_level_of(self.config.compute, self.config.optimizer), self.shape.micro_batch)
        caching = encoding_bytes(self.config, self.meta, self.count.size) + round(CUDA_CONTEXT * GIB)
        listed = ", ".join(f"{name} {amount / GIB:.2f}" for name, amount in parts.items() if amount)
        return [
            f"about {sum(parts.values()) / GIB:.1f} GiB while training ({listed})",
            f"about {caching / GIB:.1f} GiB while images are encoded",
        ]

    @cached_property
    def _encoding(self) -> StepCost:
        return encoding_cost(self.meta.models["vae"], self.count.size)

    def work(self) -> Work:
        """Return the operations of one process in matrix products, convolutions and attention."""
        config, data, largest = self.config, self.data, math.prod(self.count.size)
        recomputed = memory_level_of(config.compute, config.optimizer).recomputed
        step = self.count.cost(recomputed, self.shape.micro_batch)
        left_out = set(data.held_out)
        areas = {i: math.prod(example.target_size) / largest for i, example in enumerate(data.examples)}
        trained = [(areas[i], example.repeats) for i, example in enumerate(data.examples) if i not in left_out]
        more = config.objective.output_preservation or 0.0  # of the base's own predictions
        of_image = sum(
            (step.both.at(area) + more * step.forward.at(area)) * float(repeats) for area, repeats in trained
        )
        of_image /= float(sum(repeats for _, repeats in trained)) * self.shape.micro_batch
        evaluations = Cadence(config, data).to_come(0).evaluations
        forward = [step.forward.at(areas[i]) / self.shape.micro_batch for i in data.held_out]
        drawn = 0.0
        for prompt in data.prompts:
            assert prompt.height and prompt.width and prompt.steps and prompt.guidance_scale is not None
            forwards = prompt.steps * (2 if prompt.guidance_scale > 1 else 1)
            drawn += forwards * step.forward.at(prompt.width * prompt.height / largest) / self.shape.micro_batch
        encoded = [self._encoding.both.at(area) for area in areas.values()] * (1 + config.data.random_flip)
        is_cached = not config.cache.cache_latents or (config.cache_folder / "latents").is_dir()
        return Work(
            training=data.total_steps * data.images_per_step * of_image / self.world_size,
            samples=evaluations * config.evaluation.num_validation_images * drawn / self.world_size,
            validation=evaluations * TIMESTEPS * sum(forward) / self.world_size,
            encoding=0.0 if is_cached else sum(encoded) / self.world_size,
        )

    def rates(self, measure: Callable[[torch.device, torch.dtype], float] = products_per_second) -> list[float]:
        """Measure this device's operations a second in the training's precision and in the VAE's."""
        assert self.device is not None, "there is a device to measure"
        set_arithmetic(self.config.compute.allow_tf32, self.config.compute.deterministic)
        dtypes = DTYPES[self.config.compute.mixed_precision], self.meta.models["vae"].dtype
        return [measure(self.device, dtype) for dtype in dtypes]

    def of_time(self, measure: Callable[[torch.device, torch.dtype], float] = products_per_second) -> list[str]:
        """Return the least time of the whole training, that of its products alone."""
        work = self.work()
        total = sum(vars(work).values()) / TERA
        counted = f"{total:,.3g} TFLOP of products, {work.training / self.data.total_steps / TERA:.3g} in a step"
        said = "the run says within its first minute how long it will take"
        if self.device is None:
            of_cards = (f"{duration(seconds)} on {card}" for card, seconds in work.seconds_on_known_cards().items())
            return [f"at least {', '.join(of_cards)}, by {counted}", f"no GPU is here to measure; {said}"]
        rates = self.rates(measure)
        parts = work.seconds(*rates)
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        return [
            f"at least {duration(sum(parts.values()))} on this device ({self.device.type}): {listed}",
            f"by {counted}; {rates[0] / TERA:.3g} TFLOP/s were measured; {said}",
        ]

    def of_output(self) -> list[str]:
        folder = Path(self.config.output_dir)
        if not folder.is_dir():
            return [f"{folder}, which is new"]
        newest = checkpoints(folder)[-1:]
        return [f"{folder}, which is there" + (f" and holds {newest[0].name}, the newest" if newest else "")]


def part_of(component: str, module: str) -> str:
    return f"unet {block_of(module).split('.')[0]}" if component == "unet" else component

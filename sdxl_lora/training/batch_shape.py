"""Division of a process's part of a step into micro-batches, and the settings that depend on the device's memory."""

import copy
import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils._triton import has_triton

from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.sections.compute import BatchConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.lora.state import adapter_parameters
from sdxl_lora.models.base_source import Base, Model, models_without_weights
from sdxl_lora.models.loading import DTYPES, ENCODERS
from sdxl_lora.models.text_encoders import TextEncoders
from sdxl_lora.models.vae import PRECISIONS
from sdxl_lora.performance.activation_memory import encoding_cost
from sdxl_lora.performance.cuda_graphs import MOST_GRAPHS
from sdxl_lora.performance.device_memory import usable_bytes
from sdxl_lora.performance.frozen_layers import use_memory_saving_layers
from sdxl_lora.performance.fused_lora import fuse_lora
from sdxl_lora.performance.memory_budget import (
    MemoryCount,
    at_memory_level,
    bytes_of,
    choose,
    largest_batch,
    memory_level_of,
    next_smaller,
    possible_levels,
)
from sdxl_lora.performance.memory_estimate import GIB
from sdxl_lora.run.resume import settings_before
from sdxl_lora.training.model import add_adapters, base_dtype, computes_in_half, trained_components, warm_start_of

# An H100 gains 5 ms a step of a megapixel (benchmarks/results/h100.md) and compiles for 22 s: twice the break-even.
PIXELS_TO_COMPILE = 10e9


@dataclass(frozen=True)
class BatchShape:
    """Images that a process computes at once, and micro-steps per step."""

    micro_batch: int
    micro_steps: int

    @classmethod
    def of(cls, batch: BatchConfig, micro_batch: int | None = None) -> "BatchShape":
        """Return the settings' shape, or that of a given micro-batch; the images of a step stay the same."""
        if micro_batch is None:
            micro_batch = 1 if batch.train_batch_size == "auto" else batch.train_batch_size
        return cls(micro_batch, batch.images_per_process // micro_batch)

    def smaller(self, batch: BatchConfig) -> "BatchShape":
        """Return the shape of the next smaller micro-batch.

        Raises:
            torch.OutOfMemoryError: there is none.
        """
        if self.micro_batch == 1:
            raise torch.OutOfMemoryError("not even one image at a time fits")
        return BatchShape.of(batch, next_smaller(batch.images_per_process, self.micro_batch))


def choose_batch_shape(
    config: TrainConfig, base: Base, data, accelerator, info: Callable[[str], None]
) -> tuple[TrainConfig, BatchShape]:
    """Settle --compile, --memory_budget, --train_batch_size and --cuda_graphs alike on every process.

    Returns:
        The config to use, and the shape of a step.
    Raises:
        ConfigError: not even the smallest setting fits.
    """
    asked = config
    if config.compute.compile == "auto":
        found = gather_object([(has_triton(), compiled_before(config))])  # the main process sees the run's folder
        pixels = data.total_steps * config.batch.images_per_process * pixels_of_image(config, data)
        has_compiler, before = all(has for has, _ in found), found[0][1]
        config = settle_compiling(config, accelerator.device.type, has_compiler, pixels, before, info)
    config, shape = choose_by_memory(config, base, data, accelerator, info, asked)
    sizes = len(data.sampler.members) * (1 if shape.micro_batch == 1 else 2)  # a last micro-batch has fewer images
    return settle_graphs(config, accelerator.device.type, sizes, info), shape


def choose_by_memory(
    config: TrainConfig, base: Base, data, accelerator, info: Callable[[str], None], asked: TrainConfig
) -> tuple[TrainConfig, BatchShape]:
    if config.compute.memory_budget is None and config.batch.train_batch_size != "auto":
        return config, BatchShape.of(config.batch)
    if config.compute.memory_budget is not None:
        budget = bytes_of(config.compute.memory_budget)
    else:
        budget = min(gather_object([usable_bytes(accelerator.device)]))
    count = memory_count(config, meta_models(config, base, info), data.examples, bool(data.prompts), data.text_is_live)
    return settle(config, count, budget, info, asked)


def settle(
    config: TrainConfig,
    count: MemoryCount,
    budget: int,
    info: Callable[[str], None],
    asked: TrainConfig | None = None,
) -> tuple[TrainConfig, BatchShape]:
    """Choose the fastest level that fits the smallest micro-batch, then the largest micro-batch that fits the level.

    Args:
        asked: the config before --compile auto was settled, as a level may switch compiling off; None for `config`.
    """
    level, shape, said = memory_level_of(config.compute, config.optimizer), BatchShape.of(config.batch), []
    if config.compute.memory_budget is not None:
        level, _ = choose(possible_levels(asked or config), lambda level: count(level, shape.micro_batch), budget)
        without_compiling = ", compile off" if level.streams and config.compute.compile == "on" else ""
        config = at_memory_level(config, level, "off" if level.streams else config.compute.compile)
        said.append(f"memory_budget {config.compute.memory_budget}: {level.flags()}{without_compiling}")
    if config.batch.train_batch_size == "auto":
        most = largest_batch(config.batch.images_per_process, functools.partial(count, level), budget)
        shape = BatchShape.of(config.batch, most)
        said.append(f"train_batch_size auto: {shape.micro_batch} at once, {shape.micro_steps} micro-steps")
    info(f"{'; '.join(said)}; expects {count(level, shape.micro_batch) / GIB:.1f} GiB")
    return config, shape


def settle_graphs(config: TrainConfig, device_type: str, sizes: int, info: Callable[[str], None]) -> TrainConfig:
    """Return the config with --cuda_graphs auto settled to on or off; on a GPU, report it with the reasons.

    Args:
        sizes: number of known sizes of micro-batches.
    """
    if config.compute.cuda_graphs != "auto":
        return config
    reasons = config.graph_problems()
    if device_type != "cuda":
        reasons.append(f"there are none on {device_type}")
    elif torch.version.hip:
        reasons.append("not tried on ROCm; ask for them with --cuda_graphs on")
    if sizes > MOST_GRAPHS:
        reasons.append(f"{sizes} sizes of micro-batches are too many to record")
    if device_type != "cpu":
        info(f"cuda_graphs auto: off, {'; '.join(reasons)}" if reasons else "cuda_graphs auto: on")
    return replace_flat(config, cuda_graphs="off" if reasons else "on")


def pixels_of_image(config: TrainConfig, data) -> float:
    """Return the average pixels of a training image; for a stream, those of the resolution's square."""
    if data.stream:
        return config.data.resolution**2
    return statistics.fmean(math.prod(example.target_size) for example in data.examples)


def compiled_before(config: TrainConfig) -> bool | None:
    """Return whether the resumed run was compiled; None for a new run."""
    before = settings_before(config)
    return None if before is None else before.get("compile") in (True, "on")


def settle_compiling(
    config: TrainConfig,
    device_type: str,
    has_compiler: bool,
    pixels: float,
    before: bool | None,
    info: Callable[[str], None],
) -> TrainConfig:
    """Return the config with --compile auto settled to on or off; on a GPU, report it with the reason.

    Compiled kernels round differently, so a resumed run continues as it began.

    Args:
        pixels: of all images that a process will train on, counting repeats.
        before: whether the resumed run was compiled; None for a new run.
    """
    millions = f"{pixels / 1e6:,.0f} of {PIXELS_TO_COMPILE / 1e6:,.0f} million pixels"
    if config.compute.stream_base:
        choice, why = "off", "stream_base moves weights that a compiler needs in place"
    elif before is not None:
        choice, why = "on" if before else "off", "as in the run being resumed"
    elif device_type != "cuda" or torch.version.hip:
        choice, why = "off", f"not tried on {'ROCm' if torch.version.hip else device_type}"
    elif not has_compiler:
        choice, why = "off", "Triton, which compiles, is not installed"
    elif config.compute.deterministic:
        choice, why = "off", "a compiler may choose other kernels at each start, and deterministic is on"
    elif pixels < PIXELS_TO_COMPILE:
        choice, why = "off", f"too short a training to win back the time compiling takes: {millions}"
    else:
        choice, why = "on", f"a training long enough to win back the time compiling takes: {millions}"
    if device_type != "cpu":
        info(f"compile auto: {choice}, {why}")
    return replace_flat(config, compile=choice)


@dataclass(frozen=True)
class MetaModels:
    """Models of a base without weights, by name; those that train have their adapters.

    values: number of values of each model without its adapter.
    """

    models: dict[str, Model]
    trained: dict[str, Model]
    values: dict[str, int]

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [parameter for model in self.trained.values() for parameter in adapter_parameters(model).values()]


def meta_models(config: TrainConfig, base: Base, info: Callable[[str], None]) -> MetaModels:
    """Return the models of a training on the meta device, with their adapters and precisions."""
    models = models_without_weights(base)
    values = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    trained = trained_components(models, config.adapter)
    for model in models.values():
        nn.Module.requires_grad_(model, False)
    for name, model in ({"unet": models["unet"]} | trained).items():  # the UNet computes even where it does not train
        dtype = base_dtype(config.compute) if name == "unet" else DTYPES[config.compute.mixed_precision]
        nn.Module.to(model, dtype)  # diffusers' own warns
    nn.Module.to(models["vae"], PRECISIONS[config.cache.vae_precision])
    with torch.device("meta"):  # a LoRA's initial values change no size
        add_adapters(trained, config, warm_start_of(config.adapter, trained), info, init="kaiming")
    return MetaModels(models, trained, values)


def encoding_bytes(config: TrainConfig, meta: MetaModels, size: tuple[int, int]) -> int:
    """Count the bytes of the VAE and of encoding its batch of images of `size`.

    In half precision its float32 weights are kept as well: an image that overflows is encoded again in float32.
    """
    vae, of_weight = meta.models["vae"], 4
    cost = encoding_cost(vae, size, config.cache.vae_batch_size if config.cache.cache_latents else 1).bytes
    if vae.dtype != torch.float32:
        of_weight += vae.dtype.itemsize
        cost = max(cost, encoding_cost(nn.Module.to(copy.deepcopy(vae), torch.float32), size).bytes)
    return meta.values["vae"] * of_weight + cost


def memory_count(
    config: TrainConfig, meta: MetaModels, examples: Sequence, draws_samples: bool, encoders_stay: bool
) -> MemoryCount:
    """Return the count of this training's memory."""
    dtype, values, unet = DTYPES[config.compute.mixed_precision], meta.values, meta.models["unet"]
    left = fuse_lora(unet, config.compute.compile == "on", config.compute.stream_base)
    trains_text = config.adapter.train_text_encoder
    use_memory_saving_layers(unet, config.compute.compile == "on", trains_text)
    size = max((e.target_size for e in examples), default=(config.data.resolution,) * 2, key=math.prod)
    vae = 0 if config.cache.cache_latents else encoding_bytes(config, meta, size)
    return MemoryCount(
        unet=unet,
        encoders=TextEncoders(*(meta.models[name] for name in ENCODERS)) if trains_text else None,
        trained=meta.adapter_parameters(),
        has_average=config.optimizer.ema_decay is not None,
        dtype=dtype,
        autocast=dtype != torch.float32 and not computes_in_half(config.compute, unet, left),
        size=size,
        chunks=config.captions.max_caption_chunks,
        others={
            "text encoders": sum(values[name] for name in ENCODERS) * dtype.itemsize * encoders_stay,
            "VAE for samples": values["vae"] * 4 * draws_samples,
            "VAE": vae,
        },
    )

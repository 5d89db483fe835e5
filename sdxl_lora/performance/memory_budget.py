"""Memory of a training at each level, from fast to small, counted on the model without weights.

Each level gives up speed or precision for memory: first by recomputing, which changes no number, then by an optimizer
state in 8 bits, then by a frozen base in 8 and in 4 bits, then by a base in the host's memory. The batch size comes
last and fills the memory that a level leaves.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.sections.compute import ComputeConfig
from sdxl_lora.config.sections.optimizer import OptimizerConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.models.text_encoders import TextEncoders
from sdxl_lora.performance.activation_memory import StepCost, step_cost
from sdxl_lora.performance.compute import checkpoint_blocks
from sdxl_lora.performance.memory_estimate import CUDA_CONTEXT, GIB, training_bytes
from sdxl_lora.performance.quantization import KINDS, packable, packed_bytes
from sdxl_lora.performance.weight_streaming import streamed_bytes

OUTER_BLOCKS = ("down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2")  # large feature maps, few weights
OUTER = " ".join(OUTER_BLOCKS)


@dataclass(frozen=True)
class MemoryLevel:
    """Settings that trade speed or precision for memory.

    recomputed: "none", "all", or names of blocks; base_precision: None for that of the computation; streams: whether
    the base stays in the host's memory.
    """

    recomputed: str
    optimizer: str
    base_precision: str | None
    streams: bool = False

    def flags(self) -> str:
        words = [] if self.recomputed == "none" else ["--gradient_checkpointing"]
        words += [] if self.recomputed in ("none", "all") else [f"--gradient_checkpointing_blocks {self.recomputed}"]
        words += [f"--base_precision {self.base_precision}"] if self.base_precision else []
        words += ["--stream_base"] if self.streams else []
        return " ".join([*words, f"--optimizer {self.optimizer}"])


def memory_levels(now: MemoryLevel) -> list[MemoryLevel]:
    """Return the levels from `now` downwards."""
    steps = ["none", OUTER, "all"]
    recomputed = steps[steps.index(now.recomputed) :] if now.recomputed in steps else [now.recomputed, "all"]
    levels = [MemoryLevel(blocks, now.optimizer, now.base_precision, now.streams) for blocks in recomputed]
    small = f"{now.optimizer}8bit" if now.optimizer in ("adamw", "lion") else now.optimizer
    levels += [MemoryLevel("all", small, now.base_precision, now.streams)] if small != now.optimizer else []
    kinds = ["int8", "nf4"]
    first = kinds.index(now.base_precision) + 1 if now.base_precision in kinds else now.base_precision == "fp8"
    levels += [MemoryLevel("all", small, kind, now.streams) for kind in kinds[first:]]
    return levels if now.streams else [*levels, MemoryLevel("all", small, levels[-1].base_precision, True)]


def memory_level_of(compute: ComputeConfig, optimizer: OptimizerConfig) -> MemoryLevel:
    """Return the level that the settings ask for."""
    recomputed = " ".join(compute.gradient_checkpointing_blocks) or "all"
    base_precision = compute.base_precision if compute.base_precision in ("fp32", *KINDS) else None
    recomputed = recomputed if compute.gradient_checkpointing else "none"
    return MemoryLevel(recomputed, optimizer.name, base_precision, compute.stream_base)


def at_memory_level(config: TrainConfig, level: MemoryLevel, compiling: str) -> TrainConfig:
    """Return the config with the settings of a memory level.

    Args:
        compiling: the new value of --compile.
    Raises:
        ConfigError: a setting that is incompatible with the level.
    """
    return replace_flat(
        config,
        gradient_checkpointing=level.recomputed != "none",
        gradient_checkpointing_blocks=() if level.recomputed in ("none", "all") else tuple(level.recomputed.split()),
        optimizer=level.optimizer,
        use_8bit_adam=False,
        base_precision=level.base_precision,
        stream_base=level.streams,
        compile=compiling,
    )


def possible_levels(config: TrainConfig) -> list[MemoryLevel]:
    """Return the levels from the config's own downwards that are compatible with its other settings."""

    def is_possible(level: MemoryLevel) -> bool:
        try:
            at_memory_level(config, level, config.compute.compile)
        except ConfigError:
            return False
        return True

    return [level for level in memory_levels(memory_level_of(config.compute, config.optimizer)) if is_possible(level)]


def smaller_settings(config: TrainConfig) -> list[str]:
    """Return the flags to try when memory does not suffice, the gentlest first."""
    if (budget := config.compute.memory_budget) is not None:
        return [f"a --memory_budget below {budget}"]
    return [level.flags() for level in possible_levels(config)[1:]]


@dataclass
class MemoryCount:
    """Bytes of a training at each level, by use.

    Attributes:
        unet: on the meta device, with its adapter as it will compute.
        encoders: text encoders that train, likewise.
        trained: the adapters' parameters.
        dtype: of the computation, under autocast if that is used.
        size: height and width in pixels of the largest image.
        chunks: of 75 tokens in a caption.
        others: bytes of everything else on the device, by name.
    """

    unet: Any
    encoders: TextEncoders | None
    trained: Sequence[nn.Parameter]
    has_average: bool
    dtype: torch.dtype
    autocast: bool
    size: tuple[int, int]
    chunks: int
    others: dict[str, int]

    def __post_init__(self):
        self._costs: dict[tuple[str, int], StepCost] = {}  # each takes seconds

    def __call__(self, level: MemoryLevel, batch: int) -> int:
        return sum(self.parts(level, batch).values())

    def parts(self, level: MemoryLevel, batch: int) -> dict[str, int]:
        """Return the bytes by name, including the device's own CUDA_CONTEXT."""
        weights, dense = base_bytes(self.unet, level.base_precision, self.dtype, level.streams)
        return {
            "UNet": weights,
            **self.others,
            "adapter and optimizer": training_bytes(self.trained, level.optimizer, self.has_average),
            "activations": dense + self.cost(level.recomputed, batch).bytes,
            "CUDA": round(CUDA_CONTEXT * GIB),
        }

    def cost(self, recomputed: str, batch: int) -> StepCost:
        """Return the cost of a forward and a backward of `batch` images of `size`."""
        if (recomputed, batch) not in self._costs:
            self._recompute(recomputed)
            self._costs[recomputed, batch] = step_cost(
                self.unet, self.dtype, batch, self.size, self.chunks, self.autocast, self.encoders
            )
        return self._costs[recomputed, batch]

    def _recompute(self, recomputed: str) -> None:
        self.unet.disable_gradient_checkpointing()
        try:
            if recomputed != "none":
                checkpoint_blocks(self.unet, () if recomputed == "all" else recomputed.split())
        except ValueError as error:
            raise ConfigError(str(error)) from error
        encoders: Any = self.encoders.children() if self.encoders else ()
        for encoder in encoders:
            if recomputed == "none":
                encoder.gradient_checkpointing_disable()
            else:
                encoder.gradient_checkpointing_enable()


def base_bytes(
    unet: nn.Module, base_precision: str | None, dtype: torch.dtype, streams: bool = False
) -> tuple[int, int]:
    """Count the device's bytes of the frozen weights, and of the largest dense copy made by a packed layer."""
    size = 4 if base_precision == "fp32" else dtype.itemsize
    packed: dict[int, int] = {}
    dense = 0
    if base_precision in KINDS:
        weights = [layer.weight for _, _, layer in packable(unet)]
        packed = {id(weight): packed_bytes((weight.shape[0], weight.shape[1]), base_precision) for weight in weights}
        dense = max(weight.numel() for weight in weights) * size

    def bytes_of(tensor: torch.Tensor) -> int:
        return packed.get(id(tensor), tensor.numel() * size)

    total = sum(bytes_of(parameter) for parameter in unet.parameters() if not parameter.requires_grad)
    away, at_once = streamed_bytes(unet, bytes_of) if streams else (0, 0)
    return total - away + at_once, dense


def choose(
    levels: Sequence[MemoryLevel], count_of: Callable[[MemoryLevel], int], budget: int
) -> tuple[MemoryLevel, int]:
    """Return the first level whose training fits, and its bytes.

    Raises:
        ConfigError: not even the lowest level fits.
    """
    for level in levels:
        needed = count_of(level)
        if needed <= budget:
            return level, needed
    raise ConfigError(
        f"memory_budget {budget / GIB:.1f} GiB is too small: the minimum is {needed / GIB:.1f} GiB, with "
        f"{level.flags()}. Lower --train_batch_size, --resolution or --rank."
    )


def largest_batch(images: int, count_of: Callable[[int], int], budget: int) -> int:
    """Return the largest micro-batch that divides `images` and fits; 1 where not even that fits.

    Args:
        count_of: gives the bytes of a training for a micro-batch, and grows with it.
    """
    sizes = even_shares(images)
    return sizes[max(0, bisect_right(sizes, budget, key=count_of) - 1)]


def next_smaller(images: int, batch: int) -> int:
    return max(size for size in even_shares(images) if size < batch)


def even_shares(images: int) -> list[int]:
    return [size for size in range(1, images + 1) if images % size == 0]


def bytes_of(gibibytes: str) -> int:
    """Return the bytes of "8GB" or "6.5 GiB"; both units mean GiB, as on graphics cards."""
    return round(float(re.findall(r"[\d.]+", gibibytes)[0]) * GIB)

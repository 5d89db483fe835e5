"""How much memory a training takes at each step of a ladder from fast to small, counted on the model without weights.

Each step gives up speed or precision for memory: first what changes no number (recomputing), then the optimizer's
state in 8 bits, then the frozen base in 8 and in 4. Knows no config.
"""

import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdxl_lora.compute import checkpoint_blocks
from sdxl_lora.errors import ConfigError
from sdxl_lora.footprint import CUDA_CONTEXT, GIB, training_bytes
from sdxl_lora.quantize import packable, packed_bytes

OUTER_BLOCKS = ("down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2")  # large pictures, few weights


@dataclass(frozen=True)
class Rung:
    """A step of the ladder. base_precision None: as the computation; recomputed: "none", "outer" blocks or "all"."""

    recomputed: str
    optimizer: str
    base_precision: str | None

    def flags(self) -> str:
        words = {
            "none": [],
            "outer": [f"--gradient_checkpointing --gradient_checkpointing_blocks {' '.join(OUTER_BLOCKS)}"],
            "all": ["--gradient_checkpointing"],
        }[self.recomputed]
        words += [f"--base_precision {self.base_precision}"] if self.base_precision else []
        return " ".join([*words, f"--optimizer {self.optimizer}"])


def ladder(optimizer: str, base_precision: str | None) -> list[Rung]:
    """From what is wished for downwards."""
    small = f"{optimizer}8bit" if optimizer in ("adamw", "lion") else optimizer
    rungs = [Rung(recomputed, optimizer, base_precision) for recomputed in ("none", "outer", "all")]
    rungs += [Rung("all", small, base_precision)] if small != optimizer else []
    kinds = ["int8", "nf4"]
    first = kinds.index(base_precision) + 1 if base_precision in kinds else base_precision == "fp8"
    return rungs + [Rung("all", small, kind) for kind in kinds[first:]]


def next_rungs(now: Rung) -> list[Rung]:
    """What is left of the ladder below a rung."""
    rungs = ladder(now.optimizer, now.base_precision)
    return rungs[rungs.index(now) + 1 :] if now in rungs else []


class MemoryCount:
    """Bytes of a training on each rung. The device's own CUDA_CONTEXT is included.

    unet: on the meta device, in the computation's dtype, with its adapter as it will compute.
    more: bytes of what else stays on the device (text encoders, the VAE for samples).
    """

    def __init__(self, unet: nn.Module, dtype: torch.dtype, batch: int, size: tuple[int, int], chunks: int, more: int):
        self.unet, self.dtype, self.batch, self.size, self.chunks, self.more = unet, dtype, batch, size, chunks, more
        self.peaks: dict[str, int] = {}  # by what is recomputed; each takes seconds

    def __call__(self, rung: Rung) -> int:
        trained = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        weights, dense = base_bytes(self.unet, rung.base_precision, self.dtype)
        kept = weights + training_bytes(trained, rung.optimizer, False) + self.more + round(CUDA_CONTEXT * GIB)
        return kept + dense + self._peak(rung.recomputed)

    def _peak(self, recomputed: str) -> int:
        if recomputed not in self.peaks:
            self.unet.disable_gradient_checkpointing()
            if recomputed != "none":
                checkpoint_blocks(self.unet, OUTER_BLOCKS if recomputed == "outer" else ())
            self.peaks[recomputed] = peak_bytes(self.unet, self.dtype, self.batch, *self.size, self.chunks)
        return self.peaks[recomputed]


def base_bytes(unet: nn.Module, base_precision: str | None, dtype: torch.dtype) -> tuple[int, int]:
    """Of the frozen weights; and of the largest dense copy that a packed layer makes for its product."""
    size = 4 if base_precision == "fp32" else dtype.itemsize
    frozen = sum(parameter.numel() for parameter in unet.parameters() if not parameter.requires_grad)
    if base_precision in (None, "bf16", "fp16", "fp32"):
        return frozen * size, 0
    packed = [layer.weight for _, _, layer in packable(unet)]
    dense = sum(weight.numel() for weight in packed)
    small = sum(packed_bytes(tuple(weight.shape), base_precision) for weight in packed)
    return (frozen - dense) * size + small, max(weight.numel() for weight in packed) * size


def peak_bytes(unet: nn.Module, dtype: torch.dtype, batch: int, height: int, width: int, chunks: int = 1) -> int:
    """The most bytes that tensors beside the weights hold at once in a forward and a backward, without values."""
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    with AliveBytes(unet) as alive:
        latents = torch.empty(batch, config.in_channels, height // 8, width // 8, dtype=dtype, device="meta")
        out = unet(
            latents,
            torch.empty(batch, device="meta"),
            torch.empty(batch, 77 * chunks, config.cross_attention_dim, dtype=dtype, device="meta"),
            added_cond_kwargs={
                "text_embeds": torch.empty(batch, pooled, dtype=dtype, device="meta"),
                "time_ids": torch.empty(batch, 6, device="meta"),
            },
        ).sample
        out.float().square().mean().backward()
        del out, latents
        peak = alive.peak
    unet.zero_grad()
    return peak


class AliveBytes(TorchDispatchMode):
    """Adds up the storages that operations make and takes off those that are gone. Attention keeps no scores."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.alive = self.peak = 0
        self.known = {id(p.untyped_storage()): p.untyped_storage() for p in model.parameters()}
        self.watched: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.known or key in self.watched:
            return
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone(_) -> None:
            self.alive -= size
            del self.watched[key]

        self.watched[key] = weakref.ref(storage, gone)

    def __enter__(self):
        self.plain_attention = nn.functional.scaled_dot_product_attention
        nn.functional.scaled_dot_product_attention = lambda q, k, v, *args, **kwargs: _Attention.apply(q, k, v)
        return super().__enter__()

    def __exit__(self, *error):
        nn.functional.scaled_dot_product_attention = self.plain_attention
        return super().__exit__(*error)


class _Attention(torch.autograd.Function):
    """What flash attention keeps: its inputs, its output and a number per row."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], device=query.device))
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def choose(rungs: Sequence[Rung], count_of: Callable[[Rung], int], budget: int) -> tuple[Rung, int]:
    """The highest rung whose training fits, and its bytes.

    Raises:
        ConfigError: not even the lowest does.
    """
    for rung in rungs:
        needed = count_of(rung)
        if needed <= budget:
            return rung, needed
    raise ConfigError(
        f"memory_budget {budget / GIB:.1f} GiB is too small: the least is {needed / GIB:.1f} GiB, with {rung.flags()}. "
        "Lower --train_batch_size, --resolution or --rank."
    )


def bytes_of(gibibytes: str) -> int:
    """Of "8GB" or "6.5 GiB"; both mean GiB, as on graphics cards."""
    return round(float(re.match(r"\s*([\d.]+)", gibibytes)[1]) * GIB)

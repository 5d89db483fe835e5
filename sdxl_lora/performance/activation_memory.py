"""Cost of a step: peak bytes of its tensors beside the weights, and its matrix products.

Both are counted in a step on the meta device, without values, as a GPU would need them: attention keeps no scores, and
autocast makes copies.
"""

import contextlib
import functools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from sdxl_lora.models.text_encoders import CHUNK, TextEncoders
from sdxl_lora.performance import cast_adapters, fused_lora
from sdxl_lora.performance import quantization as quantize

# In-place products, which torch's registry lacks.
IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm, torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm}
IN_HALF, IN_FULL = ("linear", "conv2d"), ("layer_norm", "group_norm")  # under autocast, of an SDXL UNet's functions


@dataclass
class Flops:
    """Floating-point operations of products.

    Attributes:
        of_pixels: those that grow with an image's area; of_pairs: with its square (self-attention).
    """

    of_pixels: float = 0
    of_pairs: float = 0

    def at(self, area: float) -> float:
        """Return the operations for an image of `area` times the size."""
        return self.of_pixels * area + self.of_pairs * area**2


class StepCost(NamedTuple):
    """Cost of a whole batch: bytes, products of the forward alone, and of forward and backward."""

    bytes: int
    forward: Flops
    both: Flops


def step_bytes(*args, **kwargs) -> int:
    """Return the bytes of `step_cost`, which takes the same arguments."""
    return step_cost(*args, **kwargs).bytes


def step_cost(
    unet: Any,
    dtype: torch.dtype,
    batch: int,
    size: tuple[int, int],
    chunks: int = 1,
    autocast: bool = False,
    encoders: TextEncoders | None = None,
) -> StepCost:
    """Count a forward and a backward through the UNet, and through the text encoders if they train.

    Args:
        unet, encoders: on the meta device, with their adapters.
        dtype: of the text embeddings; with autocast, that of the computation.
        size: height and width in pixels.
    """
    config, width = unet.config, unet.config.cross_attention_dim
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    empty = functools.partial(torch.empty, device="meta")
    models = nn.ModuleList([unet, *([encoders] if encoders else [])])
    with AliveBytes(models) as alive, as_on_a_gpu(alive.flops, dtype if autocast else None):
        if encoders is None:
            shapes = (batch, (CHUNK + 2) * chunks, width), (batch, pooled)
            embeds = [empty(*shape, dtype=dtype) for shape in shapes]
        else:
            tokens = empty(batch * chunks, CHUNK + 2, dtype=torch.int64)
            embeds = encoders(tokens, tokens, chunks)
        latents = empty(batch, config.in_channels, size[0] // 8, size[1] // 8, dtype=unet.dtype)
        conditions = {"text_embeds": embeds[1], "time_ids": empty(batch, 6)}
        out = unet(latents, empty(batch), embeds[0], added_cond_kwargs=conditions).sample
        forward = replace(alive.flops)
        out.float().square().mean().backward()
        del out, latents, embeds, conditions
        cost = StepCost(alive.peak, forward, alive.flops)
    models.zero_grad()
    return cost


@torch.no_grad()
def encoding_cost(vae: Any, size: tuple[int, int], batch: int = 1) -> StepCost:
    """Count the encoding of a batch of images of `size` (height, width) in the VAE's precision."""
    with AliveBytes(vae) as alive, as_on_a_gpu(alive.flops):
        vae.encode(torch.empty(batch, 3, *size, dtype=vae.dtype, device="meta"))
        return StepCost(alive.peak, alive.flops, alive.flops)


class AliveBytes(TorchDispatchMode):
    """Counter of the bytes of living storages that operations made, and of their products, into `flops`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.alive = self.peak = 0
        self.flops = Flops()
        held = [*model.parameters(), *model.buffers()]
        self.known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in held}
        self.watched: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        if (count := flop_registry.get(IN_PLACE.get(packet, packet))) is not None:
            self.flops.of_pixels += count(*args, **(kwargs or {}), out_val=out)
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


@contextlib.contextmanager
def as_on_a_gpu(flops: Flops, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Imitate flash attention and a GPU's autocast, which the meta device lacks.

    Args:
        flops: counts attention's products, which are no operations here.
    """
    functional = nn.functional

    def cast_first(function, dtype):
        def cast(tensor):
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        @functools.wraps(function)
        def call(*args, **kwargs):
            return function(*tree_map_only(torch.Tensor, cast, args), **tree_map_only(torch.Tensor, cast, kwargs))

        return call

    def attention(query, key, value, *args, **kwargs):
        return _Attention.apply(query, key, value, flops)

    with contextlib.ExitStack() as replaced:
        if autocast is not None:
            attention = cast_first(attention, autocast)
            for name in (*IN_HALF, *IN_FULL):
                dtype = autocast if name in IN_HALF else torch.float32
                replaced.enter_context(patch.object(functional, name, cast_first(getattr(functional, name), dtype)))
            for module in (cast_adapters, fused_lora, quantize):
                replaced.enter_context(patch.object(module, "product_dtype", lambda x: autocast))
        replaced.enter_context(patch.object(functional, "scaled_dot_product_attention", attention))
        yield


class _Attention(torch.autograd.Function):
    """Cost of flash attention: inputs, output and one number per row; two products forward, five backward."""

    @staticmethod
    def forward(ctx, query, key, value, flops):
        ctx.flops, ctx.forward_flops = flops, sdpa_flop_count(query.shape, key.shape, value.shape)
        ctx.is_to_itself = query.shape[-2] == key.shape[-2]
        _Attention.count(ctx, 1)
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], device=query.device))
        return out

    @staticmethod
    def backward(ctx, gradient):
        _Attention.count(ctx, 2.5)
        return (*(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None)

    @staticmethod
    def count(ctx, times: float) -> None:
        """Add the products of the forward, `times` over."""
        if ctx.is_to_itself:
            ctx.flops.of_pairs += times * ctx.forward_flops
        else:
            ctx.flops.of_pixels += times * ctx.forward_flops

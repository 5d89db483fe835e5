"""All adapters of a model cast to the precision of its products by one operation, and their gradients back by another.

Cast by each layer, they are a quarter of the operations of a step of SDXL. Knows no model and no config.
"""

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sdxl_lora.performance.quantization import product_dtype


class Adapted(Protocol):
    """A layer with a LoRA, or several.

    Attributes:
        cast: the first factors and the second ones in the precision of the products, from the forward of the model to
            its backward; several layers' one below the other.
    """

    cast: tuple[Tensor, Tensor] | None

    def factors(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return each layer's (rank, in), and each layer's (out, rank)."""

    def forget(self) -> None:
        """Let go of `cast`, and of what was made of it."""


def cast_at_once(model: nn.Module, adapted: Sequence[Adapted]) -> None:
    """Let the model's forward give each of `adapted` its `cast`, where the products are not in the adapters' precision.

    Args:
        model: its forward's first argument, or the one named sample, tells the precision of its products, see
            `product_dtype`.
    """
    forward = model.forward

    @functools.wraps(forward)
    def cast_first(*args, **kwargs):
        dtype = product_dtype(args[0] if args else kwargs["sample"])
        groups = [group for one in adapted for group in one.factors()]
        if groups[0][0].dtype == dtype:
            return forward(*args, **kwargs)
        parameters = [parameter for group in groups for parameter in group]
        shapes = [(sum(len(parameter) for parameter in group), *group[0].shape[1:]) for group in groups]
        before = [one.cast for one in adapted]  # of a forward whose backward is still to come
        cast = iter(_CastAll.apply(adapted, dtype, shapes, *parameters))
        for one in adapted:
            one.cast = next(cast), next(cast)
        out = forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            for one, cast_before in zip(adapted, before, strict=True):
                one.cast = cast_before
        return out

    model.forward = cast_first


class _CastAll(torch.autograd.Function):
    """Parameters in another precision: to autograd, to DDP and to recomputing it is no more than that."""

    @staticmethod
    def forward(ctx, adapted, dtype, shapes, *parameters):
        ctx.adapted, ctx.dtype = adapted, parameters[0].dtype
        ctx.shapes = [parameter.shape for parameter in parameters]
        return cast_into_one(parameters, dtype, shapes)

    @staticmethod
    def backward(ctx, *gradients):
        for one in ctx.adapted:  # what is recomputed has been by now
            one.forget()
        return None, None, None, *cast_into_one(gradients, ctx.dtype, ctx.shapes)


def cast_into_one(tensors: Sequence[Tensor], dtype: torch.dtype, shapes: Sequence[tuple[int, ...]]) -> Sequence[Tensor]:
    """Tensors of one precision in another, by one operation, one after the other in the same memory.

    Args:
        shapes: of what is returned: all tensors' values in their order, divided among these.
    """
    flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors), dtype=dtype)
    torch._foreach_copy_(torch._utils._unflatten_dense_tensors(flat, tensors), list(tensors))
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return tuple(part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True))
